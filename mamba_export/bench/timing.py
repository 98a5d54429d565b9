"""Timing: warm up, repeat, take the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

_SECONDS = 1.5
_LEAST, _MOST = 3, 200


def median_milliseconds(call: Callable[[], object], seconds: float = _SECONDS) -> float:
    """Median time of ``call`` in milliseconds, over about ``seconds`` after one call to warm up."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST or (time.perf_counter() < end and len(times) < _MOST):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
