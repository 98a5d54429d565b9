"""What the points of a run say: tables, plots and claims for its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cost.plan import MAMBA, MAMBA2, TRANSFORMER, Plan
from cost.point import DECODE, MEMORY, PREFILL, SCAN, THROUGHPUT, Point
from cost.scan_points import ATTENTION, OURS, PARALLEL, SEQUENTIAL
from report.record import Axis, Cell, Claim, Plot, Series, Table

_PAPER = "arXiv:2312.00752"
_LONG = 1 << 16
"""Tokens from which on the Transformer is expected to cost more."""
_CONSTANT = 1.25
"""What counts as constant: clocks change, and allocators keep a little more of a long run."""
_FULL = 1 << 14
"""Tokens from which on a text fills every buffer that its parts are read in."""
_MANY = 64
"""Sequences from which on its cache is expected to decide."""


@dataclass(frozen=True)
class _Kind:
    """How points of a kind are shown."""

    title: str
    x: str
    y: str
    scale: float = 1.0


_KINDS = {
    PREFILL: _Kind("Reading a text: time per token", "tokens read", "µs per token"),
    DECODE: _Kind("Writing after a text: time per token", "tokens before it", "ms per token"),
    MEMORY: _Kind("Most memory held, weights included", "tokens read", "GB", 1e-9),
    THROUGHPUT: _Kind("Writing: speed of all sequences together", "sequences at once", "tokens per second"),
    SCAN: _Kind("The scan by itself: time", "steps", "ms"),
}  # fmt: skip


class Findings:
    """Points of a run.

    Args:
        plan: of the run.
        points: in the order in which they came.
    """

    def __init__(self, plan: Plan, points: Sequence[Point]) -> None:
        self._plan, self._points = plan, points

    def series(self, kind: str) -> dict[str, dict[int, float]]:
        """Figures of a kind, by who and where."""
        found: dict[str, dict[int, float]] = {}
        for point in self._points:
            if point.kind == kind and point.value is not None:
                found.setdefault(point.who, {})[point.at] = point.value * _KINDS[kind].scale
        return found

    def tables(self) -> list[Table]:
        """A table a kind, and one of where series ended."""
        made = []
        for kind, shown in _KINDS.items():
            series = self.series(kind)
            places = sorted({at for values in series.values() for at in values})
            rows: list[list[Cell]] = [
                [at, *(values.get(at) for values in series.values())] for at in places
            ]
            if rows:
                title = f"{shown.title}, {shown.y}"
                made.append(Table(title, [shown.x, *series], rows, self._note(kind)))
        ended: list[list[Cell]] = [
            [point.who, _KINDS[point.kind].title.partition(":")[0], point.at, point.note]
            for point in self._points
            if point.value is None
        ]
        if ended:
            columns = ["series", "of", "ends before", "why"]
            made.append(Table("Where a series ends, and why", columns, ended))
        return made

    def plots(self) -> list[Plot]:
        """A plot a kind, both axes logarithmic."""
        made = []
        for kind, shown in _KINDS.items():
            lines = [
                Series(who, sorted(values), [values[at] for at in sorted(values)])
                for who, values in self.series(kind).items()
            ]
            if lines:
                x, y = Axis(shown.x, "log2"), Axis(shown.y, "log")
                made.append(Plot(shown.title, x, y, lines, self._note(kind)))
        return made

    def _note(self, kind: str) -> str:
        plan = self._plan
        if kind == THROUGHPUT:
            return f"Greedy, after {plan.context:,} tokens of each sequence."
        if kind == SCAN:
            return (
                f"Batch 1, {plan.d_inner:,} channels, 16 states a channel, {plan.scan_dtype}; the last state "
                "is returned. Attention, of the same width, is causal and by itself."
            )
        if kind == MEMORY:
            return (
                "Above what was held before the model was loaded; some tokens are written after the text. "
                f"Compared from {_FULL:,} tokens on: a shorter text takes less, being less than a part on a "
                "GPU, and on a CPU too short to fill the allocator's pools."
            )
        if kind == DECODE:
            return "Batch 1, greedy; the choice of a token is in it."
        return "Batch 1, until the logits of the last token are on the host."

    def claims(self) -> list[Claim]:
        """What is published, and what this run found."""
        made: list[Claim] = []
        for who in (MAMBA, MAMBA2):
            made += self._constant(who)
        made += self._grows()
        made += self._scan()
        made += self._throughput()
        return made

    def _constant(self, who: str) -> list[Claim]:
        made = []
        for kind, what, from_on, until in (
            (DECODE, "time of a written token", 0, 0),
            (MEMORY, "memory", _FULL, _LONG),
        ):
            figures = self.series(kind).get(who, {})
            values = {at: value for at, value in figures.items() if at >= from_on}
            if len(values) < 2 or max(values) < until:
                continue
            first, last = min(values), max(values)
            ratio = values[last] / values[first]
            claim = f"{who}: {what} after {last:,} tokens over that after {first:,}"
            made.append(
                Claim(claim, "constant", _digits(ratio), ratio <= _CONSTANT, f"{_PAPER}, section 1",
                      headline=kind == DECODE)
            )  # fmt: skip
        return made

    def _grows(self) -> list[Claim]:
        """The Transformer against Mamba where both have figures, at the longest text."""
        made = []
        for kind, what in (
            (PREFILL, "time to read"),
            (DECODE, "time of a written token"),
            (MEMORY, "memory"),
        ):
            series = self.series(kind)
            ours = series.get(MAMBA, {})
            theirs = _best(series, TRANSFORMER)
            both = sorted(at for at in set(ours) & set(theirs) if at >= _LONG)
            if both:
                at = both[-1]
                ratio = theirs[at] / ours[at]
                claim = f"Transformer over Mamba: {what} at {at:,} tokens"
                made.append(Claim(claim, None, _digits(ratio), ratio > 1))
        return made

    def _scan(self) -> list[Claim]:
        series = self.series(SCAN)
        ours, made = series.get(OURS, {}), []
        for who, what, published, least in (
            (PARALLEL, "a parallel scan in PyTorch", "20 to 40", 20.0),
            (SEQUENTIAL, "a loop in PyTorch", None, 1.0),
        ):
            ratios = {at: series[who][at] / ours[at] for at in series.get(who, {}) if at in ours}
            if ratios:
                at = max(ratios, key=lambda one: ratios[one])
                claim = f"Scan: {what} over ours, at {at:,} steps where it is most"
                source = f"{_PAPER}, section 4.5, on an A100" if published else ""
                holds = ratios[at] >= least
                made.append(
                    Claim(
                        claim, published, _digits(ratios[at]), holds, source, published is not None
                    )
                )
        attention = series.get(ATTENTION, {})
        beyond = [at for at in attention if at > 2048 and at in ours]
        if beyond:
            slower = [at for at in beyond if ours[at] >= attention[at]]
            told = "quicker at each" if not slower else f"slower at {slower[0]:,}"
            claim = "Scan: quicker than attention of the same width beyond 2,048 steps"
            source = f"{_PAPER}, section 4.5, on an A100"
            made.append(Claim(claim, "quicker", told, not slower, source))
        return made

    def _throughput(self) -> list[Claim]:
        series = self.series(THROUGHPUT)
        ours, theirs = series.get(MAMBA, {}), _best(series, TRANSFORMER, most=True)
        both = sorted(at for at in set(ours) & set(theirs) if at >= _MANY)
        if not both:
            return []
        at = both[-1]
        ratio = ours[at] / theirs[at]
        claim = f"Tokens per second at batch {at}: Mamba over a Transformer of its size"
        source = f"{_PAPER}, section 4.5: 1.4B beside 1.3B on an A100"
        return [Claim(claim, "4 to 5", _digits(ratio), ratio >= 4, source, headline=True)]


def _best(
    series: dict[str, dict[int, float]], start: str, *, most: bool = False
) -> dict[int, float]:
    """Of all forms of an implementation the best figure at each place."""
    forms = [values for who, values in series.items() if who.partition(",")[0] == start]
    choose = max if most else min
    places = {at for values in forms for at in values}
    return {at: choose(values[at] for values in forms if at in values) for at in places}


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
