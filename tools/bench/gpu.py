"""The GPU: its name and size, its measured rates, and the time of kernels on it without Python's."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch

from bench.limits import Ceilings, special_function_rate
from mamba_export.errors import MambaExportError
from mamba_export.models import TORCH_DTYPES

METHOD = (
    "Operators: kernels captured in a CUDA graph and replayed behind a waiting kernel, timed by CUDA events, "
    "divided by their number (the gap between two kernels is in it, Python is not); inputs rotate through more "
    "memory than three times the L2 cache unless said otherwise; random data; median of 15. "
    "Models: wall clock of a call that ends with its result on the host; median after a warm-up."
)
_ATTRIBUTE_CLOCK_RATE = 13  # CU_DEVICE_ATTRIBUTE_CLOCK_RATE, kHz
_REPEATS = 15
_GRAPH_SECONDS = 2e-3  # kernels that a graph holds, where they are short
_MEASURE_SECONDS = 5e-3  # replays that one measurement times
_WAIT_CYCLES = 1_000_000  # half a millisecond: the host queues the replays meanwhile
_COPY_BYTES = 1 << 31
_PRODUCT_SIZE = 8192


def require_gpu() -> None:
    """Raise MambaExportError unless PyTorch has a working NVIDIA GPU."""
    if not torch.cuda.is_available():
        raise MambaExportError(
            "--device cuda needs an NVIDIA GPU that PyTorch can use, and there is none here: use --device cpu"
        )


def gpu_name() -> str:
    """The device's name."""
    return torch.cuda.get_device_name()


def cache_bytes() -> int:
    """Size of the L2 cache."""
    return int(torch.cuda.get_device_properties().L2_cache_size)


def used_bytes() -> int:
    """Device memory in use, by every process."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def release_memory() -> None:
    """Give back what Python and PyTorch hold and do not use, before another library needs it."""
    gc.collect()
    torch.cuda.empty_cache()


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


def _copy_milliseconds() -> float:
    source = torch.randint(0, 255, (_COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return kernel_milliseconds(lambda _: target.copy_(source))


def _product_milliseconds(dtype: str) -> float:
    shape = (_PRODUCT_SIZE, _PRODUCT_SIZE)
    a, b = (torch.randn(shape, device="cuda", dtype=TORCH_DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    return kernel_milliseconds(lambda _: torch.mm(a, b, out=out))


def measure_ceilings(dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16")) -> Ceilings:
    """Measure the rates that limits are computed from: a copy and a matrix product of each dtype."""
    properties = torch.cuda.get_device_properties()
    copy = _copy_milliseconds()
    operations = 2 * _PRODUCT_SIZE**3
    rates = {dtype: operations / (1e-3 * _product_milliseconds(dtype)) for dtype in dtypes}
    release_memory()
    return Ceilings(
        bandwidth=2 * _COPY_BYTES / (1e-3 * copy),
        special_rate=special_function_rate(properties.multi_processor_count, clock_hertz()),
        product_rate=rates,
    )


def launch_milliseconds() -> float:
    """Time of the smallest kernel in a graph: under it no operator comes, however little it does."""
    one = torch.zeros(1, device="cuda")
    return kernel_milliseconds(lambda _: one.add_(1))


def sets_to_rotate(bytes_a_set: int) -> int:
    """How many input sets do not fit in the L2 cache together, with room to spare."""
    return max(1, math.ceil(3 * cache_bytes() / bytes_a_set))


@torch.no_grad()
def kernel_milliseconds(launch: Callable[[int], Any], sets: int = 1) -> float:
    """Time of what ``launch(i)`` queues on the GPU, without the time of the Python that queues it.

    Args:
        launch: does the work over input set i in [0, sets); must be capturable in a CUDA graph.
        sets: how many sets take turns.

    Returns:
        Median milliseconds of one launch.
    """
    # Results of a set live until its next turn, as a caller's would: memory is written, not the cache alone.
    kept: list[Any] = [None] * sets
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        launch(0)  # loads modules and picks algorithms, which a capture must not
        start.record()
        for _ in range(3):
            launch(0)
        end.record()
        stream.synchronize()
        estimate = 1e-3 * start.elapsed_time(end) / 3
        turns = max(1, math.ceil(min(32, _GRAPH_SECONDS / estimate) / sets))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(turns):
                for index in range(sets):
                    kept[index] = launch(index)
        start.record()
        graph.replay()
        end.record()
        stream.synchronize()
        replays = max(1, math.ceil(_MEASURE_SECONDS / (1e-3 * start.elapsed_time(end))))
        times = []
        for _ in range(_REPEATS):
            torch.cuda._sleep(_WAIT_CYCLES)
            start.record()
            for _ in range(replays):
                graph.replay()
            end.record()
            stream.synchronize()
            times.append(start.elapsed_time(end) / (replays * turns * sets))
    torch.cuda.current_stream().wait_stream(stream)
    del graph, kept
    return statistics.median(times)
