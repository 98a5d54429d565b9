"""A measurement, and the names that tables and plots look for in one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

OURS = "mamba_export"
LIMIT = "limit"
"""Implementations that tables and plots look for; the limit's note says what sets it. Every other
implementation is a peer's, or another form of ours: its name then starts with ``OURS``."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        what: what was timed, the same for all implementations that are compared.
        implementation: who did it.
        milliseconds: median time; None where there is none.
        note: what is to be said of it, or why there is no time.
        kind: which table it belongs to ("scan", "prefill"); empty for the CPU's one table.
        sizes: what sets it apart from the other rows of that table.
    """

    what: str
    implementation: str
    milliseconds: float | None
    note: str = ""
    kind: str = ""
    sizes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        kind: str,
        sizes: dict[str, Any],
        implementation: str,
        milliseconds: float | None,
        note: str = "",
    ) -> Row:
        """A row of a table whose columns are sizes and implementations."""
        what = f"{kind}: " + ", ".join(f"{name} {value}" for name, value in sizes.items())
        return cls(what, implementation, milliseconds, note, kind, sizes)


def is_ours(implementation: str) -> bool:
    """Whether an implementation is a form of ours."""
    return implementation.startswith(OURS)


def is_peer(implementation: str) -> bool:
    """Whether an implementation is somebody else's."""
    return implementation != LIMIT and not is_ours(implementation)


def _who(row: Row) -> str:
    """The implementation without its form: "mamba_ssm" of "mamba_ssm, CUDA graph"."""
    return row.implementation.partition(",")[0]


@dataclass(frozen=True)
class Comparison:
    """The rows of one piece of work, all from one run."""

    rows: list[Row]

    def row(self, implementation: str) -> Row | None:
        """The row of an implementation."""
        return next((row for row in self.rows if row.implementation == implementation), None)

    def time(self, implementation: str) -> float | None:
        """Milliseconds of an implementation, where it has some."""
        row = self.row(implementation)
        return None if row is None else row.milliseconds

    @property
    def best_peer(self) -> Row | None:
        """The fastest form of any peer: what ours is compared with.

        A peer of which a form failed is left out, for that form may have been its best.
        """
        theirs = [row for row in self.rows if is_peer(row.implementation)]
        failed = {_who(row) for row in theirs if row.milliseconds is None}
        whole = [row for row in theirs if _who(row) not in failed]
        return min(whole, key=lambda row: row.milliseconds or 0.0, default=None)

    @property
    def against_peer(self) -> float | None:
        """The best peer's time over ours: above 1 where ours is faster."""
        best, ours = self.best_peer, self.time(OURS)
        return None if best is None or not ours else (best.milliseconds or 0.0) / ours

    @property
    def against_limit(self) -> float | None:
        """Our time over the limit."""
        ours, limit = self.time(OURS), self.time(LIMIT)
        return None if not ours or not limit else ours / limit


def comparisons(rows: Iterable[Row]) -> list[Comparison]:
    """Rows by what was timed, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.what, []).append(row)
    return [Comparison(group) for group in groups.values()]
