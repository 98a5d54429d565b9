"""The compiled library's functions for CUDA graphs on an NVIDIA GPU (plugins/kernels/mamba_decode.h)."""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import Any, ClassVar

import numpy as np

from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.errors import SessionError
from mamba_export.libraries import CUSTOM_OPS

CHOOSE_NOTHING, CHOOSE_BEST, CHOOSE_DRAWN = range(3)
"""``mamba_choice``."""
NOT_CHOSEN = -2
"""``MAMBA_NOT_CHOSEN``."""


class ChoiceOptions(ctypes.Structure):
    """``mamba_choice_options``."""

    _fields_: ClassVar = [
        ("choice", ctypes.c_int32),
        ("top_k", ctypes.c_int32),
        ("temperature", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
        ("top_p", ctypes.c_double),
    ]


class ChooseParams(ctypes.Structure):
    """``mamba_choose_params``; pointers as addresses."""

    _fields_: ClassVar = [
        ("batch", ctypes.c_int64),
        ("vocab_size", ctypes.c_int64),
        ("dtype", ctypes.c_int),
        ("logits", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("seen", ctypes.c_void_p),
        ("options", ctypes.c_void_p),
        ("draws", ctypes.c_void_p),
        ("next", ctypes.c_void_p),
        ("chosen", ctypes.c_void_p),
        ("turns", ctypes.c_void_p),
    ]


class GpuStream:
    """A CUDA stream for one session, and what the library does on it.

    Code that queues work on the stream, ONNX Runtime's runs included, holds ``lock``: while a step is being
    captured, the work of another thread would become part of it.

    Args:
        device: number of the GPU, which the library's kernels cover.

    Raises:
        SessionError: the library cannot be loaded, or CUDA gives no stream.
    """

    _idle: ClassVar[dict[int, list[int]]] = {}  # streams of closed sessions, for the next

    def __init__(self, device: int) -> None:
        path = CUSTOM_OPS.path()
        if path is None:
            raise SessionError(CUSTOM_OPS.why_absent())
        self._library = custom_ops.load(path)
        self._device = device
        self.lock = threading.Lock()
        idle = self._idle.setdefault(device, [])
        if idle:
            self.address = idle.pop()
        else:
            stream = ctypes.c_void_p()
            self._call("mamba_stream_create", device, ctypes.byref(stream))
            self.address = int(stream.value or 0)
        # Not destroyed: ONNX Runtime may still use it after Python has released it.
        weakref.finalize(self, idle.append, self.address).atexit = False

    @property
    def provider_options(self) -> dict[str, str]:
        """Options of the CUDA provider that make ONNX Runtime compute on this stream."""
        return {"has_user_compute_stream": "1", "user_compute_stream": str(self.address)}

    def copy(self, to: int, source: int, size: int) -> None:
        """Copy between any two addresses, and wait for all work of the stream."""
        self.queue_copy(to, source, size)
        self.wait()

    def queue_copy(self, to: int, source: int, size: int) -> None:
        """Queue a copy between two addresses on the device."""
        self._call(
            "mamba_copy", _pointer(to), _pointer(source), ctypes.c_size_t(size), self._stream
        )

    def queue_upload(self, to: int, array: np.ndarray) -> None:
        """Queue a copy of an array, of memory that is the host's alone: it may change once this returns."""
        self.queue_copy(to, array.ctypes.data, array.nbytes)

    def wait(self) -> None:
        """Wait for all work of the stream."""
        self._call("mamba_wait", self._stream)

    def choose(self, params: ChooseParams) -> None:
        """Queue the choice of the next tokens."""
        self._call("mamba_choose_cuda", ctypes.byref(params), self._stream)

    def wait_choice(self, chosen: np.ndarray) -> None:
        """Wait until none of these is ``NOT_CHOSEN``, whatever was queued after their choice.

        Args:
            chosen: (batch,) int64 of ``host_array``, which a queued choice writes.
        """
        self._call(
            "mamba_wait_choice",
            _pointer(chosen.ctypes.data),
            ctypes.c_int64(len(chosen)),
            self._stream,
        )

    def begin_capture(self) -> None:
        """Note the work that is queued from now on, in place of running it."""
        self._call("mamba_capture_begin", self._stream)

    def end_capture(self) -> Graph:
        """The work that was queued since ``begin_capture``.

        Raises:
            SessionError: some of it cannot be repeated.
        """
        graph = ctypes.c_void_p()
        self._call("mamba_capture_end", self._stream, ctypes.byref(graph))
        return Graph(self._library, int(graph.value or 0))

    def abandon_capture(self) -> None:
        """Throw the work away that was queued since ``begin_capture``."""
        self._library.mamba_capture_end(self._stream, None)

    def run(self, graph: Graph) -> None:
        """Run captured work, and wait for its end."""
        self.launch(graph)
        self.wait()

    def launch(self, graph: Graph) -> None:
        """Queue captured work."""
        self._call("mamba_graph_run", _pointer(graph.address), self._stream)

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Zeros in host memory that the GPU reads and writes itself."""
        dtype = np.dtype(dtype)
        size = dtype.itemsize * int(np.prod(shape))
        memory = ctypes.c_void_p()
        self._call("mamba_host_alloc", ctypes.c_size_t(size), ctypes.byref(memory))
        buffer = (ctypes.c_char * size).from_address(int(memory.value or 0))
        # Every view of the array holds the buffer, and so its memory.
        weakref.finalize(buffer, self._library.mamba_host_free, memory).atexit = False
        return np.frombuffer(buffer, dtype).reshape(shape)

    def device_memory(self, size: int) -> DeviceMemory:
        """Memory of the GPU, of just that size: ONNX Runtime's arena takes the next power of two, and keeps it.

        Raises:
            SessionError: there is not as much.
        """
        memory = ctypes.c_void_p()
        self._call("mamba_device_alloc", self._device, ctypes.c_size_t(size), ctypes.byref(memory))
        return DeviceMemory(self._library, int(memory.value or 0))

    @property
    def _stream(self) -> ctypes.c_void_p:
        return _pointer(self.address)

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, name)(*arguments) != 0:
            raise SessionError(str(self._library.mamba_last_error().decode()))


class DeviceMemory:
    """Memory of the GPU; goes when nobody holds it."""

    def __init__(self, library: ctypes.CDLL, address: int) -> None:
        self.address = address
        weakref.finalize(self, library.mamba_device_free, _pointer(address)).atexit = False


class Graph:
    """Captured work; goes when nobody holds it."""

    def __init__(self, library: ctypes.CDLL, address: int) -> None:
        self.address = address
        weakref.finalize(self, library.mamba_graph_destroy, _pointer(address)).atexit = False


def _pointer(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address)
