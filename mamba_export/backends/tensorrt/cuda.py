"""The few calls of the CUDA driver that a TensorRT session makes, through ctypes: no PyTorch, no toolkit.

``libcuda.so.1`` comes with every NVIDIA driver. The primary context is used, which is the one of the CUDA
runtime too, so that memory and streams of ours are TensorRT's as well.
Reference: NVIDIA's CUDA driver API, sections "Memory Management", "Stream Management", "Graph Management".
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np

from mamba_export.errors import SessionError

_OUT_OF_MEMORY = 2
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_NON_BLOCKING = 1  # a stream that does not wait for the legacy default stream
_CAPTURE_THREAD_LOCAL = 1  # other threads may allocate while this one captures

_SIGNATURES: dict[str, tuple[object, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, c_void_p),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (c_void_p, c_void_p),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemAllocHost_v2": (c_void_p, c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, ctypes.c_ubyte, c_size_t, c_void_p),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, ctypes.c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
}


class CudaError(SessionError):
    """A call of the driver failed."""


class OutOfMemoryError(CudaError):
    """The GPU has too little memory."""


class _Driver:
    """``libcuda.so.1`` with its error codes as exceptions."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = c_int

    def __call__(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            kind = OutOfMemoryError if code == _OUT_OF_MEMORY else CudaError
            raise kind(f"the GPU driver failed: {name} returned {self._error_name(code)}")

    def quietly(self, name: str, *arguments: object) -> None:
        """A call whose failure nobody can act on: freeing while the process ends."""
        getattr(self._library, name)(*arguments)

    def _error_name(self, code: int) -> str:
        text = c_char_p()
        self._library.cuGetErrorName(code, byref(text))
        return text.value.decode() if text.value else str(code)


@functools.cache
def _driver() -> _Driver:
    try:
        driver = _Driver(ctypes.CDLL("libcuda.so.1"))
    except (OSError, AttributeError):
        raise SessionError(
            "there is no NVIDIA GPU here: libcuda.so.1, its driver, is absent"
        ) from None
    try:
        driver("cuInit", 0)
    except CudaError as error:
        raise SessionError(f"there is no NVIDIA GPU that works here: {error}") from error
    return driver


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU and a driver for it."""
    try:
        return _count() > 0
    except SessionError:
        return False


def _count() -> int:
    count = c_int()
    _driver()("cuDeviceGetCount", byref(count))
    return count.value


class Memory:
    """Memory on a GPU, freed with the object.

    Attributes:
        address: on the device.
        nbytes: its size.
    """

    def __init__(self, gpu: Gpu, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes
        self._finalizer = weakref.finalize(self, gpu.free, address)


class Gpu:
    """One NVIDIA GPU, and its primary context.

    Args:
        index: as CUDA numbers them.

    Attributes:
        name: for people.
        capability: its compute capability, "8.6".

    Raises:
        SessionError: there is no driver, no GPU, or none of this index.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self._driver = _driver()
        count = _count()
        if not 0 <= index < count:
            raise SessionError(f"there is no GPU {index}: this machine has {count}")
        device = c_int()
        self._driver("cuDeviceGet", byref(device), index)
        name = ctypes.create_string_buffer(128)
        self._driver("cuDeviceGetName", name, len(name), device.value)
        self.name = name.value.decode(errors="replace")
        numbers = []
        for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
            number = c_int()
            self._driver("cuDeviceGetAttribute", byref(number), attribute, device.value)
            numbers.append(str(number.value))
        self.capability = ".".join(numbers)
        self._device = device.value
        self._context: c_void_p | None = None

    def activate(self) -> None:
        """Make its context the calling thread's; every entry from outside does this first."""
        if self._context is None:
            context = c_void_p()
            self._driver("cuDevicePrimaryCtxRetain", byref(context), self._device)
            self._context = context
        self._driver("cuCtxSetCurrent", self._context)

    def free_memory(self) -> int:
        """Bytes that are free now."""
        free, total = c_size_t(), c_size_t()
        self._driver("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def allocate(self, nbytes: int) -> Memory:
        """Uninitialised memory.

        Raises:
            OutOfMemoryError: the GPU has not that much; says how much it has.
        """
        address = c_uint64()
        try:
            self._driver("cuMemAlloc_v2", byref(address), max(nbytes, 1))
        except OutOfMemoryError:
            raise OutOfMemoryError(
                f"GPU {self.index} ({self.name}) has {self.free_memory() >> 20} MiB of memory free and "
                f"{(nbytes >> 20) + 1} MiB more are needed: use a smaller batch or length, or end other "
                "programs"
            ) from None
        return Memory(self, address.value, nbytes)

    def free(self, address: int) -> None:
        """Free memory of ``allocate``; whatever thread the garbage collector runs on."""
        self._driver.quietly("cuCtxSetCurrent", self._context)
        self._driver.quietly("cuMemFree_v2", address)

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A host array in page-locked memory, as copies inside a CUDA graph need; freed with the array."""
        nbytes = int(np.prod(shape)) * dtype.itemsize
        pointer = c_void_p()
        self._driver("cuMemAllocHost_v2", byref(pointer), max(nbytes, 1))
        block = (ctypes.c_ubyte * nbytes).from_address(pointer.value or 0)
        weakref.finalize(block, self._driver.quietly, "cuMemFreeHost", pointer)
        return np.frombuffer(memoryview(block), dtype).reshape(shape)

    def stream(self) -> Stream:
        """A new stream."""
        return Stream(self, self._driver)


class Stream:
    """A queue of work on a GPU.

    Attributes:
        handle: what TensorRT takes.
    """

    def __init__(self, gpu: Gpu, driver: _Driver) -> None:
        self._gpu = gpu
        self._driver = driver
        handle = c_void_p()
        driver("cuStreamCreate", byref(handle), _NON_BLOCKING)
        self.handle = int(handle.value or 0)
        self._finalizer = weakref.finalize(self, driver.quietly, "cuStreamDestroy_v2", handle)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous host array to the device."""
        self._driver("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self.handle)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy device memory into a contiguous host array; it is there after ``synchronize``."""
        self._driver("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self.handle)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy within the device."""
        self._driver("cuMemcpyDtoDAsync_v2", target, source, nbytes, self.handle)

    def zero(self, address: int, nbytes: int) -> None:
        """Fill device memory with zeros."""
        self._driver("cuMemsetD8Async", address, 0, nbytes, self.handle)

    def synchronize(self) -> None:
        """Wait for all that was queued."""
        self._driver("cuStreamSynchronize", self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` queues on this stream, without running it.

        Raises:
            CudaError: something in it cannot be captured.
        """
        self._driver("cuStreamBeginCapture_v2", self.handle, _CAPTURE_THREAD_LOCAL)
        graph = c_void_p()
        try:
            work()
        except BaseException:
            self._driver.quietly("cuStreamEndCapture", self.handle, byref(graph))
            if graph.value:
                self._driver.quietly("cuGraphDestroy", graph)
            raise
        self._driver("cuStreamEndCapture", self.handle, byref(graph))
        try:
            return Graph(self._driver, graph, self.handle)
        finally:
            self._driver.quietly("cuGraphDestroy", graph)


class Graph:
    """Captured work that is launched as one."""

    def __init__(self, driver: _Driver, graph: c_void_p, stream: int) -> None:
        self._driver = driver
        self._stream = stream
        executable = c_void_p()
        driver("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        self._executable = executable
        self._finalizer = weakref.finalize(self, driver.quietly, "cuGraphExecDestroy", executable)

    def launch(self) -> None:
        """Queue it on the stream that it was captured on."""
        self._driver("cuGraphLaunch", self._executable, self._stream)
