"""When a series ends: what the next measurement is going to take, from those before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

_MOST = 2.0
"""Power of the length that a time grows with at most: attention's."""


class Growth:
    """The times of a series so far.

    Args:
        limit: seconds that one measurement may take.
        times: (length, seconds) of measurements that were made elsewhere, ascending.
    """

    def __init__(self, limit: float, times: Sequence[tuple[int, float]] = ()) -> None:
        self._limit = limit
        self._times = list(times)

    def add(self, length: int, seconds: float) -> None:
        """A measurement was made."""
        self._times.append((length, seconds))

    def expected(self, length: int) -> float:
        """Seconds that a length is going to take; 0 where nothing is known."""
        if not self._times:
            return 0.0
        last, seconds = self._times[-1]
        power = _MOST
        if len(self._times) > 1:
            before, earlier = self._times[-2]
            power = math.log(seconds / earlier) / math.log(last / before)
            power = min(_MOST, max(1.0, power))
        return seconds * float(length / last) ** power

    def why_not(self, length: int) -> str:
        """Why a length is not measured; empty where it is."""
        expected = self.expected(length)
        if expected <= self._limit:
            return ""
        told = f"{expected:,.0f}" if expected >= 100 else f"{expected:.3g}"
        return f"limit of time: about {told} s expected, more than {self._limit:g} s"
