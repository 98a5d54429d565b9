"""Timing: warm up, repeat, take the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

_SECONDS = 1.5
_MIN_RUNS, _MAX_RUNS = 3, 200

STEPS = 16
"""Tokens of a decode measurement on a CPU; its time is divided by it."""


def median_milliseconds(
    call: Callable[[], object], seconds: float = _SECONDS, min_runs: int = _MIN_RUNS
) -> float:
    """Median time of ``call`` in milliseconds, over about ``seconds`` after one call to warm up.

    Args:
        call: returns when its work is done.
        seconds: how long to repeat it.
        min_runs: repetitions, however long they take.
    """
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < min_runs or (time.perf_counter() < end and len(times) < _MAX_RUNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def milliseconds_a_step(seconds: Callable[[int], float], steps: int, runs: int = 5) -> float:
    """Time of a step in milliseconds: a run of ``1 + steps`` steps less one of a single step.

    Each is the quickest of its runs. What else the host does makes a run longer, never shorter; a difference
    of two single runs is too small where that befell the short one.

    Args:
        seconds: runs so many steps and returns how long that took; warmed up.
        steps: by which the two differ.
        runs: of each.
    """
    pairs = [(seconds(1 + steps), seconds(1)) for _ in range(runs)]
    long, short = (min(times) for times in zip(*pairs, strict=True))
    return 1000 * (long - short) / steps
