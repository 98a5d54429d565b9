"""The rates that limits are computed from: each the best of several ways to reach it on this GPU."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import gpu
from bench.limits import Ceilings, special_function_rate
from mamba_export.errors import MambaExportError
from mamba_export.models import TORCH_DTYPES

_ATTRIBUTE_CLOCK_RATE = 13  # CU_DEVICE_ATTRIBUTE_CLOCK_RATE, kHz
_COPY_BYTES = (1 << 28, 1 << 30, 1 << 32)
_PRODUCT_SIZES = (4096, 8192, 16384)
_LOW = ("fp16", "bf16")  # the matrix units run both at one rate
_EXPONENTIALS = 512  # of a thread's number, one after the other

Progress = Callable[[str], None]
_Make = Callable[[int], Callable[[int], Any]]  # bytes -> what launches one copy of them


def measure_ceilings(
    progress: Progress = lambda _: None, dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16")
) -> Ceilings:
    """Measure the rates: copies of several sizes and kinds, products of several sizes, exponentials.

    Args:
        progress: called with each rate.
        dtypes: of the matrix products.
    """
    copies = {
        f"{kind} of {size >> 20} MiB": 2 * size / _seconds(functools.partial(copy, size))
        for size in _COPY_BYTES
        for kind, copy in _copies().items()
    }
    for name, rate in copies.items():
        progress(f"{name}: {rate / 1e9:.0f} GB/s")
    products = {
        dtype: max(_product_rate(dtype, size) for size in _PRODUCT_SIZES) for dtype in dtypes
    }
    low = [products[dtype] for dtype in dtypes if dtype in _LOW]
    rates = {dtype: max(low) if dtype in _LOW else rate for dtype, rate in products.items()}
    for dtype, rate in rates.items():
        progress(f"product of {dtype}: {rate / 1e12:.0f} TFLOP/s")
    properties = torch.cuda.get_device_properties()
    clock = special_function_rate(properties.multi_processor_count, clock_hertz())
    special = {"at the highest clock": clock}
    if _has_triton():
        special["measured"] = _special_rate(properties.multi_processor_count)
    for name, rate in special.items():
        progress(f"exponentials {name}: {rate / 1e12:.2f} T/s")
    gpu.release_memory()
    return Ceilings(max(copies.values()), max(special.values()), rates)


def clock_hertz() -> float:
    """Highest clock of the multiprocessors, from the driver."""
    driver = ctypes.CDLL("libcuda.so.1")
    device, kilohertz = ctypes.c_int(), ctypes.c_int()
    torch.cuda.init()
    if driver.cuDeviceGet(
        ctypes.byref(device), torch.cuda.current_device()
    ) or driver.cuDeviceGetAttribute(ctypes.byref(kilohertz), _ATTRIBUTE_CLOCK_RATE, device):
        raise MambaExportError("the NVIDIA driver does not tell the GPU's clock")
    return 1e3 * kilohertz.value


def _seconds(make: Callable[[], Callable[[int], Any]]) -> float:
    """Seconds of a launch; what ``make`` holds for it is given back afterwards."""
    seconds = 1e-3 * gpu.kernel_milliseconds(make())
    gpu.release_memory()
    return seconds


def _copies() -> dict[str, _Make]:
    kinds: dict[str, _Make] = {"driver's copy": _driver_copy, "elementwise copy": _elementwise_copy}
    if _has_triton():
        kinds["Triton's copy"] = _triton_copy
    return kinds


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _buffers(size: int) -> tuple[Tensor, Tensor]:
    source = torch.randint(
        -(1 << 31), (1 << 31) - 1, (size // 4,), dtype=torch.int32, device="cuda"
    )
    return source, torch.empty_like(source)


def _driver_copy(size: int) -> Callable[[int], Any]:
    """cudaMemcpyAsync, which ``copy_`` of like tensors is."""
    source, target = _buffers(size)
    return lambda _: target.copy_(source)


def _elementwise_copy(size: int) -> Callable[[int], Any]:
    """PyTorch's vectorised kernel: reads one tensor and writes another."""
    source, target = _buffers(size)
    return lambda _: torch.bitwise_not(source, out=target)


def _triton_copy(size: int) -> Callable[[int], Any]:
    from bench.triton_kernels import COPY_BLOCK, copy_kernel

    source, target = _buffers(size)
    grid = (-(-source.numel() // COPY_BLOCK),)
    return lambda _: copy_kernel[grid](source, target, source.numel(), num_warps=8)


def _product_rate(dtype: str, size: int) -> float:
    def make() -> Callable[[int], Any]:
        a, b = (
            torch.randn((size, size), device="cuda", dtype=TORCH_DTYPES[dtype]) for _ in range(2)
        )
        out = torch.empty_like(a)
        return lambda _: torch.mm(a, b, out=out)

    return 2 * size**3 / _seconds(make)


def _special_rate(multiprocessors: int) -> float:
    from bench.triton_kernels import EXPONENTIAL_BLOCK, exponential_kernel

    programs = 64 * multiprocessors

    def make() -> Callable[[int], Any]:
        numbers = torch.rand(programs * EXPONENTIAL_BLOCK, device="cuda")
        return lambda _: exponential_kernel[(programs,)](numbers, _EXPONENTIALS, num_warps=4)

    return programs * EXPONENTIAL_BLOCK * _EXPONENTIALS / _seconds(make)
