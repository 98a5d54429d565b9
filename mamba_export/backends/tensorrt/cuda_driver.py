"""The few calls of the CUDA driver that a TensorRT session makes, by NVIDIA's ``cuda-bindings``: no PyTorch.

The primary context is used, which is the one of the CUDA runtime too, so that memory and streams of ours
are TensorRT's as well. The driver, ``libcuda.so.1``, is opened when a GPU is first asked for.
Reference: NVIDIA's CUDA driver API, sections "Memory Management", "Stream Management", "Graph Management".
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from mamba_export.errors import SessionError


class CudaError(SessionError):
    """A call of the driver failed."""


class OutOfMemoryError(CudaError):
    """Memory could not be allocated on the GPU."""


def _call(function: Callable[..., tuple[Any, ...]], *arguments: object) -> Any:
    """What a function of the bindings returns, without the error code that comes first.

    Raises:
        OutOfMemoryError, CudaError: the driver returned an error code.
    """
    try:
        returned = function(*arguments)
    except RuntimeError as error:  # the bindings look a function up when it is first called
        raise CudaError(f"the GPU driver is too old, update it: {error}") from error
    return _result(function.__name__, *returned)


def _result(name: str, code: Any, *values: Any) -> Any:
    if code:
        kind = OutOfMemoryError if code.name == "CUDA_ERROR_OUT_OF_MEMORY" else CudaError
        raise kind(f"the GPU driver failed: {name} returned {code.name}")
    return values[0] if len(values) == 1 else values


@functools.cache
def _bindings() -> Any:
    """The module ``cuda.bindings.driver``; loads no driver yet."""
    try:
        from cuda.bindings import driver
    except ImportError:
        raise SessionError(
            "cuda-bindings, NVIDIA's package for its driver, is not installed: "
            "pip install 'mamba_export[tensorrt]'"
        ) from None
    return driver


@functools.cache
def _driver() -> Any:
    """The same module, with the driver loaded and initialised."""
    driver = _bindings()
    try:
        returned = driver.cuInit(0)
    except RuntimeError:  # from the bindings: they open the driver at the first call
        raise SessionError(
            "there is no NVIDIA GPU here: libcuda.so.1, its driver, is absent"
        ) from None
    try:
        _result("cuInit", *returned)
    except CudaError as error:
        raise SessionError(f"there is no NVIDIA GPU that works here: {error}") from error
    return driver


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU and a driver for it.

    Raises:
        SessionError: cuda-bindings is not installed, so the driver cannot be asked.
    """
    _bindings()
    try:
        return _count() > 0
    except SessionError:
        return False


def _count() -> int:
    return int(_call(_driver().cuDeviceGetCount))


class Memory:
    """Memory on a GPU, freed with the object.

    Attributes:
        address: on the device.
        nbytes: its size.
    """

    def __init__(self, gpu: Gpu, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes
        self._finalizer = weakref.finalize(self, gpu.release, gpu.driver.cuMemFree, address)


class Gpu:
    """One NVIDIA GPU, and its primary context.

    Args:
        index: as CUDA numbers them.

    Attributes:
        name: for people.
        capability: its compute capability, "8.6".
        driver: the module ``cuda.bindings.driver``.

    Raises:
        SessionError: there is no driver, no GPU, or none of this index; or cuda-bindings is not installed.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.driver = _driver()
        count = _count()
        if not 0 <= index < count:
            raise SessionError(f"there is no GPU {index}: this machine has {count}")
        self._device = _call(self.driver.cuDeviceGet, index)
        name: bytes = _call(self.driver.cuDeviceGetName, 128, self._device)
        self.name = name.partition(b"\0")[0].decode(errors="replace")
        attribute = self.driver.CUdevice_attribute
        major, minor = (
            _call(self.driver.cuDeviceGetAttribute, number, self._device)
            for number in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.capability = f"{major}.{minor}"
        self._context: Any = None

    def activate(self) -> None:
        """Make its context the calling thread's; every entry from outside does this first."""
        if self._context is None:
            self._context = _call(self.driver.cuDevicePrimaryCtxRetain, self._device)
        _call(self.driver.cuCtxSetCurrent, self._context)

    def free_memory(self) -> int:
        """Bytes that are free now."""
        free, _total = _call(self.driver.cuMemGetInfo)
        return int(free)

    def allocate(self, nbytes: int) -> Memory:
        """Uninitialised memory.

        Raises:
            OutOfMemoryError: the GPU has not that much; says how much it has.
        """
        try:
            address = _call(self.driver.cuMemAlloc, max(nbytes, 1))
        except OutOfMemoryError:
            raise OutOfMemoryError(
                f"GPU {self.index} ({self.name}) has {self.free_memory() >> 20} MiB of memory free and "
                f"{(nbytes >> 20) + 1} MiB more are needed: use a smaller batch or length, or end other "
                "programs"
            ) from None
        return Memory(self, int(address), nbytes)

    def release(self, function: Callable[..., tuple[Any, ...]], handle: object) -> None:
        """Free something by ``function``, whatever thread the garbage collector runs on.

        Failures are ignored: nobody can act on them, least of all when the process ends.
        """
        (code,) = self.driver.cuCtxPushCurrent(self._context)
        if not code:
            function(handle)
            self.driver.cuCtxPopCurrent()

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A host array in page-locked memory, as copies inside a CUDA graph need; freed with the array."""
        nbytes = int(np.prod(shape)) * dtype.itemsize
        pointer = _call(self.driver.cuMemAllocHost, max(nbytes, 1))
        # Arrays, and views of them, keep the block alive, and the block the memory.
        block = (ctypes.c_ubyte * nbytes).from_address(pointer)
        weakref.finalize(block, self.release, self.driver.cuMemFreeHost, pointer)
        return np.frombuffer(memoryview(block), dtype).reshape(shape)

    def stream(self) -> Stream:
        """A new stream."""
        return Stream(self)


class Stream:
    """A queue of work on a GPU.

    Attributes:
        handle: what TensorRT takes.
    """

    def __init__(self, gpu: Gpu) -> None:
        from cuda.bindings.utils import get_cuda_native_handle

        self._gpu = gpu
        self._driver = gpu.driver
        # It does not wait for the legacy default stream.
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = _call(self._driver.cuStreamCreate, flags)
        self.handle = int(get_cuda_native_handle(self._stream))
        self._finalizer = weakref.finalize(
            self, gpu.release, self._driver.cuStreamDestroy, self._stream
        )

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous host array to the device."""
        pointer = array.ctypes.data
        _call(self._driver.cuMemcpyHtoDAsync, address, pointer, array.nbytes, self._stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy device memory into a contiguous host array; it is there after ``synchronize``."""
        pointer = array.ctypes.data
        _call(self._driver.cuMemcpyDtoHAsync, pointer, address, array.nbytes, self._stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy within the device."""
        _call(self._driver.cuMemcpyDtoDAsync, target, source, nbytes, self._stream)

    def zero(self, address: int, nbytes: int) -> None:
        """Fill device memory with zeros."""
        _call(self._driver.cuMemsetD8Async, address, 0, nbytes, self._stream)

    def synchronize(self) -> None:
        """Wait for all that was queued."""
        _call(self._driver.cuStreamSynchronize, self._stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` queues on this stream, without running it.

        Raises:
            CudaError: something in it cannot be captured.
        """
        # Other threads may allocate while this one captures.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call(self._driver.cuStreamBeginCapture, self._stream, mode)
        try:
            work()
        except BaseException:
            code, graph = self._driver.cuStreamEndCapture(self._stream)
            if not code:
                self._driver.cuGraphDestroy(graph)
            raise
        graph = _call(self._driver.cuStreamEndCapture, self._stream)
        try:
            return Graph(self._gpu, graph, self._stream)
        finally:
            self._driver.cuGraphDestroy(graph)


class Graph:
    """Captured work that is launched as one."""

    def __init__(self, gpu: Gpu, graph: Any, stream: Any) -> None:
        self._driver = gpu.driver
        self._stream = stream
        self._executable = _call(self._driver.cuGraphInstantiate, graph, 0)
        self._finalizer = weakref.finalize(
            self, gpu.release, self._driver.cuGraphExecDestroy, self._executable
        )

    def launch(self) -> None:
        """Queue it on the stream that it was captured on."""
        _call(self._driver.cuGraphLaunch, self._executable, self._stream)
