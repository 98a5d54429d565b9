"""Timing: warm up, repeat, take the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

_SECONDS = 1.5
_LEAST, _MOST = 3, 200


def median_milliseconds(
    call: Callable[[], object], seconds: float = _SECONDS, least: int = _LEAST
) -> float:
    """Median time of ``call`` in milliseconds, over about ``seconds`` after one call to warm up.

    Args:
        call: returns when its work is done.
        seconds: how long to repeat it.
        least: repetitions, however long they take.
    """
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < end and len(times) < _MOST):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
