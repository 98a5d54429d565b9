"""Time of the scan by itself against its length: ours, PyTorch's, mamba_ssm's, and attention beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench import gpu, peers
from bench.gpu_operators import native, scan_inputs
from bench.measure import reason
from bench.peers import operators as peer_operators
from bench.timing import median_milliseconds
from cost import scans
from cost.growth import Growth
from cost.memory import release
from cost.point import SCAN, Point
from mamba_export.operators import native as native_library

OURS, SEQUENTIAL, PARALLEL = "mamba_export", "PyTorch, a loop", "PyTorch, parallel scan"
ATTENTION = "attention (PyTorch's)"
_SHORT = 0.02
"""Seconds under which a call on a GPU is timed in a CUDA graph: Python would be a part of it."""


def scan_points(
    device: str,
    dtype: str,
    d_inner: int,
    d_state: int,
    lengths: Sequence[int],
    limit: float,
) -> Iterator[Point]:
    """Every implementation at every length, batch 1, until it takes longer than ``limit`` seconds.

    Args:
        device: "cpu" or "cuda".
        dtype: of the inputs.
        d_inner, d_state: of the scan.
        lengths: of the sequences, ascending.
        limit: of one measurement.
    """
    for who, call in _implementations(device).items():
        growth = Growth(limit)
        for length in lengths:
            why = growth.why_not(length)
            if not why:
                try:
                    inputs = scan_inputs(1, 1, d_inner, length, d_state, dtype, device)[0]
                    seconds = _seconds(functools.partial(call, inputs), device, who == SEQUENTIAL)
                    del inputs
                    growth.add(length, seconds)
                    yield Point(SCAN, who, length, 1e3 * seconds)
                except Exception as error:  # mostly memory
                    why = reason(error)
            release(device)
            if why:
                yield Point(SCAN, who, length, None, why)
                break


def _implementations(device: str) -> dict[str, Callable[[dict[str, Any]], Any]]:
    found: dict[str, Callable[[dict[str, Any]], Any]] = {}
    if device == "cuda" or native_library.available():
        found[OURS] = _ours
    if device == "cuda" and not peers.mamba_ssm_absent():
        found[peers.MAMBA_SSM] = _Theirs()
    found[PARALLEL] = lambda inputs: scans.parallel_scan(**inputs)
    found[SEQUENTIAL] = lambda inputs: scans.sequential_scan(**inputs)
    found[ATTENTION] = lambda inputs: scans.attention(**inputs)
    return found


def _ours(inputs: dict[str, Any]) -> Any:
    with native():
        return torch.ops.mamba_export.selective_scan(**inputs)


class _Theirs:
    """mamba_ssm's scan; arguments in its own layout are made once for inputs."""

    def __init__(self) -> None:
        self._of: tuple[Any, Any] = (None, None)

    def __call__(self, inputs: dict[str, Any]) -> Any:
        if self._of[0] is not inputs:
            self._of = inputs, peer_operators.scan_arguments(**inputs)
        return peer_operators.scan(self._of[1])


@torch.no_grad()
def _seconds(call: Callable[[], Any], device: str, eager: bool) -> float:
    if device == "cpu":
        return 1e-3 * median_milliseconds(call, 0.2)
    call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    once = 1e-3 * float(start.elapsed_time(end))
    if eager or once > _SHORT:
        return once
    return 1e-3 * gpu.kernel_milliseconds(lambda _: call())
