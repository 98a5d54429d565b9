"""One figure of a measurement."""

from __future__ import annotations

from dataclasses import dataclass

PREFILL, DECODE, MEMORY, THROUGHPUT, SCAN = KINDS = (
    "prefill",
    "decode",
    "memory",
    "throughput",
    "scan",
)
"""Microseconds a token that is read; milliseconds a token that is written after so many; bytes held for both;
tokens a second at a batch; milliseconds of a scan."""


@dataclass(frozen=True)
class Point:
    """A figure, or why there is none.

    Args:
        kind: one of ``KINDS``.
        who: what was measured.
        at: the length of the text, or the batch.
        value: the figure; None where there is none.
        note: what is to be said of it, or why there is none: then the series ends here.
    """

    kind: str
    who: str
    at: int
    value: float | None
    note: str = ""
