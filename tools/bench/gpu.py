"""The GPU: its name and size, and the time of kernels on it without Python's."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch

from mamba_export.errors import MambaExportError

METHOD = (
    "Operators: kernels captured in a CUDA graph and replayed behind a waiting kernel, timed by CUDA events, "
    "divided by their number (the gap between two kernels is in it, Python is not); inputs rotate through "
    "eight times the L2 cache, so that each is read from memory; random data; median of 15. "
    "Prefill: wall clock until the last step's logits are on the host; ours is a plain OrtSession.run, "
    "which returns states too; mamba_ssm is timed as one calls it, states included, and as a CUDA graph of its "
    "forward pass without states. "
    "Decode: a token of every sequence in a greedy generate; step alone is ours with the logits on the host, "
    "and of mamba_ssm the replay of its captured step alone; its recurrent states have the dtype of the "
    "weights, ours are fp32 where a row names no other. Medians after a warm-up; random weights. "
    "A ratio takes the fastest form of a peer. "
    "Limits: bytes that must move over the best rate of several copies (three sizes, three kinds), "
    "exponentials over the rate of the special function units, products over the best rate of three "
    "sizes; the largest of these times."
)
_REPEATS = 15
_CACHES = 8  # L2 caches that the input sets fill together: a set has left it before its turn
_GRAPH_SECONDS = 2e-3  # kernels that a graph holds, where they are short
_MEASURE_SECONDS = 5e-3  # replays that one measurement times
_WAIT_CYCLES = 1_000_000  # half a millisecond: the host queues the replays meanwhile


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


def launch_milliseconds() -> float:
    """Time of the smallest kernel in a graph: under it no operator comes, however little it does."""
    one = torch.zeros(1, device="cuda")
    return kernel_milliseconds(lambda _: one.add_(1))


def sets_to_rotate(bytes_a_set: int) -> int:
    """How many input sets do not fit in the L2 cache together, with room to spare."""
    return max(1, math.ceil(_CACHES * cache_bytes() / bytes_a_set))


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
