"""Our use of NVIDIA's bindings of the CUDA driver, with no driver. On a GPU: tests/test_cuda_driver_gpu.py."""

from __future__ import annotations

import ast
import ctypes.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mamba_export.backends.tensorrt import cuda_driver
from mamba_export.backends.tensorrt.cuda_driver import CudaError, Gpu, OutOfMemoryError
from mamba_export.errors import SessionError

driver = pytest.importorskip(
    "cuda.bindings.driver", reason="cuda-bindings is not installed: pip install cuda-bindings"
)
SOURCE = ast.parse(Path(cuda_driver.__file__).read_text(encoding="utf-8"))


def _calls() -> Iterator[tuple[str, int]]:
    """Every function of the driver that the module calls or hands on, with the count of its arguments."""
    for node in ast.walk(SOURCE):
        if not isinstance(node, ast.Call):
            continue
        for index, part in enumerate([node.func, *node.args]):
            if isinstance(part, ast.Attribute) and part.attr.startswith("cu"):
                # f(a), call(f, a), finalize(owner, release, f, a)
                yield part.attr, len(node.args) - index


def test_the_driver_has_every_function_that_is_called() -> None:
    calls = set(_calls())
    assert {"cuInit", "cuMemAlloc", "cuMemFree", "cuStreamDestroy", "cuGraphLaunch"} <= {
        name for name, _ in calls
    }
    for name, count in calls:
        parameters = inspect.signature(getattr(driver, name)).parameters
        assert len(parameters) == count, name
    assert len(calls) == len({name for name, _ in calls}) > 20


def test_the_driver_has_every_enumerator_that_is_used() -> None:
    found = 0
    for node in ast.walk(SOURCE):
        if isinstance(node, ast.Attribute) and node.attr.startswith("CU_"):
            found += 1
            kinds = (driver.CUdevice_attribute, driver.CUstream_flags, driver.CUstreamCaptureMode)
            assert sum(hasattr(kind, node.attr) for kind in kinds) == 1, node.attr
    assert found == 4
    assert driver.CUresult(2).name == "CUDA_ERROR_OUT_OF_MEMORY"
    assert not driver.CUresult.CUDA_SUCCESS


@pytest.fixture
def no_cache() -> Iterator[None]:
    """Nothing of the bindings is remembered from before the test, nor after it."""
    for function in (cuda_driver._bindings, cuda_driver._driver):
        function.cache_clear()
    yield
    for function in (cuda_driver._bindings, cuda_driver._driver):
        function.cache_clear()


@pytest.mark.skipif(
    ctypes.util.find_library("cuda") is not None, reason="libcuda.so.1 is on this machine"
)
def test_no_driver_is_one_line(no_cache: None) -> None:
    assert not cuda_driver.has_gpu()
    with pytest.raises(SessionError) as error:
        Gpu()
    assert str(error.value) == "there is no NVIDIA GPU here: libcuda.so.1, its driver, is absent"


def test_missing_bindings_say_what_to_install(
    no_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for request in (cuda_driver.has_gpu, Gpu):
        with pytest.raises(
            SessionError, match=r"cuda-bindings.*pip install 'mamba_export\[tensorrt\]'"
        ):
            request()


def _fake(
    monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., Any]
) -> list[tuple[Any, ...]]:
    """A driver of one GPU in place of the bindings; returns the calls that free or set something."""
    success, freed = driver.CUresult.CUDA_SUCCESS, []

    def note(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            freed.append((name, *arguments))
            return (success,)

        return call

    memory = np.zeros(64, np.uint8)
    fakes = {
        "cuInit": lambda flags: (success,),
        "cuDeviceGetCount": lambda: (success, 1),
        "cuDeviceGet": lambda index: (success, driver.CUdevice(index)),
        "cuDeviceGetName": lambda length, device: (success, b"A GPU".ljust(length, b"\0")),
        "cuDeviceGetAttribute": lambda number, device: (success, 9 if number == 75 else 0),
        "cuDevicePrimaryCtxRetain": lambda device: (success, "context"),
        "cuMemGetInfo": lambda: (success, 3 << 20, 9 << 20),
        "cuMemAllocHost": lambda size: (success, memory.ctypes.data),
        "cuMemAlloc": lambda size: (success, driver.CUdeviceptr(4096)),
        "CUdevice_attribute": driver.CUdevice_attribute,
        **{
            name: note(name)
            for name in (
                "cuCtxSetCurrent",
                "cuCtxPushCurrent",
                "cuCtxPopCurrent",
                "cuMemFree",
                "cuMemFreeHost",
            )
        },
        **functions,
    }
    for name, fake in fakes.items():
        if name.startswith("cu"):
            fake.__name__ = name
    monkeypatch.setattr(cuda_driver, "_driver", lambda: SimpleNamespace(**fakes, memory=memory))
    return freed


def test_what_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch)
    gpu = Gpu()
    assert (gpu.name, gpu.capability, gpu.free_memory()) == ("A GPU", "9.0", 3 << 20)
    for index in (1, -1):
        with pytest.raises(SessionError, match=rf"there is no GPU {index}: this machine has 1"):
            Gpu(index)


def test_errors_of_the_driver_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    error = driver.CUresult
    _fake(
        monkeypatch,
        cuMemAlloc=lambda size: (error.CUDA_ERROR_OUT_OF_MEMORY, driver.CUdeviceptr(0)),
        cuDevicePrimaryCtxRetain=lambda device: (error.CUDA_ERROR_INVALID_DEVICE, None),
    )
    with pytest.raises(OutOfMemoryError, match=r"has 3 MiB of memory free and 6 MiB more"):
        Gpu().allocate(5 << 20)
    with pytest.raises(
        CudaError, match="cuDevicePrimaryCtxRetain returned CUDA_ERROR_INVALID_DEVICE"
    ):
        Gpu().activate()

    def missing(*_: Any) -> None:
        raise RuntimeError('Function "cuMemGetInfo_v2" not found')

    _fake(monkeypatch, cuMemGetInfo=missing)
    with pytest.raises(CudaError, match=r"the GPU driver is too old, update it: .*cuMemGetInfo"):
        Gpu().free_memory()


def test_memory_is_freed_with_its_last_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    freed = _fake(monkeypatch)
    gpu = Gpu()
    gpu.activate()
    array = gpu.host_array((2, 3), np.dtype(np.float32))
    array[:] = 1
    view = array[1]
    del array
    memory = gpu.allocate(10)
    assert (memory.address, memory.nbytes) == (4096, 10)
    assert freed == [("cuCtxSetCurrent", "context")]
    del memory
    around = [("cuCtxPushCurrent", "context"), ("cuCtxPopCurrent",)]
    assert freed[1:] == [around[0], ("cuMemFree", 4096), around[1]]
    assert view.tolist() == [1, 1, 1]
    del view
    assert [call[0] for call in freed[4:]] == [
        "cuCtxPushCurrent",
        "cuMemFreeHost",
        "cuCtxPopCurrent",
    ]
