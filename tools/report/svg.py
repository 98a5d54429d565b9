"""A plot as inline SVG: colours are the page's CSS variables, so that it is light or dark with the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from report.numbers import cell_text, span, tick_text, ticks
from report.shape import Axis, Number, Plot, Series

COLOURS = 8
"""How many the page's style sheet has, --series-0 on; a series beyond them shares one, with another marker."""

_WIDTH, _HEIGHT = 440, 300
_TOP, _RIGHT, _BOTTOM = 30, 16, 48
_CHARACTER = 8.2  # width of one in a tick's label, at the size that narrow pages have
_NAME_ROW = 26
_MOST_MARKERS = 60
_MOST_POINTS = 1200

Point = tuple[float, float]


@dataclass(frozen=True)
class _Scaled:
    """An axis on its way to pixels: of numbers ``low`` to ``high`` to pixels ``start`` to ``end``."""

    axis: Axis
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: Number) -> float:
        low, high, at = self.low, self.high, float(value)
        if self.axis.scale != "linear":
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def marks(self) -> list[tuple[float, str]]:
        """Pixel and label of each tick."""
        if self.axis.names:
            return [(self(index), name) for index, name in enumerate(self.axis.names)]
        scale = self.axis.scale
        return [(self(at), tick_text(at, scale)) for at in ticks(self.low, self.high, scale)]


def marker(shape: int, x: float, y: float, title: str = "") -> str:
    """The marker of the series of this number around a point."""
    r = 4.0
    corners = {
        1: [(-r, -r), (r, -r), (r, r), (-r, r)],
        2: [(0, -1.25 * r), (1.2 * r, r), (-1.2 * r, r)],
        3: [(0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)],
        4: [(0, 1.25 * r), (1.2 * r, -r), (-1.2 * r, -r)],
        5: [(-r, -r), (r, r), (0, 0), (r, -r), (-r, r), (0, 0)],
        6: [(0, -1.3 * r), (0, 1.3 * r), (0, 0), (1.3 * r, 0), (-1.3 * r, 0), (0, 0)],
    }.get(shape % COLOURS)
    told = f"<title>{escape(title)}</title>" if title else ""
    if corners is None:
        kind = "hollow" if shape % COLOURS == COLOURS - 1 else "filled"
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{told}</circle>'
    kind = "stroked" if shape % COLOURS in (5, 6) else "filled"
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="{kind}" points="{points}">{told}</polygon>'


def draw(plot: Plot, identity: str, numbers: Mapping[str, int]) -> str:
    """A plot, without its title and legend, which the page's text holds.

    Args:
        identity: of the element; unique on the page.
        numbers: of each series' name, for its colour and marker.
    """
    x, y = _scales(plot)
    title, summary = f"{identity}-title", f"{identity}-summary"
    height = y.start + _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-labelledby="{title} {summary}">',
        f'<title id="{title}">{escape(plot.title)}</title>',
        f'<desc id="{summary}">{escape(_summary(plot))}</desc>',
        *_grid(x, y),
    ]
    for series in plot.series:
        number = numbers[series.name]
        parts.append(f'<g class="series" style="--c: var(--series-{number % COLOURS})">')
        parts += _series(series, number, x, y)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"])


def swatch(series: Series, number: int) -> str:
    """What stands before a series' name in the legend."""
    line = "" if series.style == "points" else _path([(1, 7), (31, 7)], series.style)
    shape = "" if _bare(series) else marker(number, 16, 7)
    return (
        f'<svg class="swatch series" viewBox="0 0 32 14" aria-hidden="true" '
        f'style="--c: var(--series-{number % COLOURS})">{line}{shape}</svg>'
    )


def _scales(plot: Plot) -> tuple[_Scaled, _Scaled]:
    shown = [
        (a, b) for one in plot.series for a, b in zip(one.x, one.y, strict=True) if b is not None
    ]
    height = _TOP + _NAME_ROW * len(plot.y.names) + _BOTTOM if plot.y.names else _HEIGHT
    if plot.y.names:  # the first on top
        y = _Scaled(plot.y, len(plot.y.names) - 0.5, -0.5, height - _BOTTOM, _TOP)
    else:
        y = _Scaled(plot.y, *span([b for _, b in shown], plot.y.scale), height - _BOTTOM, _TOP)
    widest = max((len(label) for _, label in y.marks()), default=1)
    left = 12 + _CHARACTER * widest
    ends = (
        (-0.5, len(plot.x.names) - 0.5)
        if plot.x.names
        else span([a for a, _ in shown], plot.x.scale, zero_below=0.1)
    )
    return _Scaled(plot.x, *ends, left, _WIDTH - _RIGHT), y


def _grid(x: _Scaled, y: _Scaled) -> list[str]:
    parts = []
    for at, label in y.marks():
        parts.append(_line("grid", x.start, at, x.end, at))
        parts.append(_text(label, x.start - 6, at + 4, "end"))
    for at, label in x.marks():
        parts.append(_line("grid", at, y.start, at, y.end))
        parts.append(_text(label, at, y.start + 18, "middle"))
    parts.append(_line("axis", x.start, y.start, x.end, y.start))
    parts.append(_text(x.axis.label, (x.start + x.end) / 2, y.start + 40, "middle", "label"))
    if not y.axis.names:
        parts.append(_text(y.axis.label, 2, 14, "start", "label"))
    return parts


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(text: str, x: float, y: float, anchor: str, kind: str = "tick") -> str:
    at = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text class="{kind}" {at} text-anchor="{anchor}">{escape(text)}</text>'


def _bare(series: Series) -> bool:
    """Whether a series is drawn without markers: too many points, or a line that is only compared with."""
    return series.style != "points" and (series.style == "dashed" or len(series.x) > _MOST_MARKERS)


def _series(series: Series, number: int, x: _Scaled, y: _Scaled) -> list[str]:
    runs: list[list[Point]] = [[]]
    parts = []
    for a, b in zip(series.x, series.y, strict=True):
        if b is None:
            runs.append([])
            continue
        at = (x(a), y(b))
        runs[-1].append(at)
        if not _bare(series):
            parts.append(marker(number, *at, title=_told(series, a, b, x.axis, y.axis)))
    lines = [] if series.style == "points" else [_path(_thinned(run), series.style) for run in runs]
    return [*lines, *parts]


def _told(series: Series, a: Number, b: Number, x: Axis, y: Axis) -> str:
    """What a point says when the pointer is over it."""
    first = x.names[int(a)] if x.names else cell_text(a)
    second = y.names[int(b)] if y.names else cell_text(b)
    if y.names:
        return f"{series.name}, {second}: {first} ({x.label})"
    return f"{series.name}: {second} ({y.label}) at {first} ({x.label})"


def _path(points: Sequence[Point], style: str) -> str:
    if not points:
        return ""
    way = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<polyline class="{style}" points="{way}"/>'


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """A line of many points with the lowest and the highest of each small part of it alone."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {part.index(end(part, key=lambda one: one[1])) for end in (min, max)}
        kept += [part[index] for index in sorted(ends)]
    return kept


def _summary(plot: Plot) -> str:
    """The plot in words, for those who do not see it: its axes, and where each line begins and ends."""
    parts = [f"{plot.y.label} against {plot.x.label}."]
    for series in plot.series:
        points = [(a, b) for a, b in zip(series.x, series.y, strict=True) if b is not None]
        if not points:
            parts.append(f"{series.name}: nothing.")
        elif plot.y.names:
            told = [f"{plot.y.names[int(b)]} {cell_text(a)}" for a, b in points]
            parts.append(f"{series.name}: {', '.join(told)}.")
        else:
            ends = [f"{cell_text(b)} at {cell_text(a)}" for a, b in (points[0], points[-1])]
            parts.append(f"{series.name}: {' to '.join(dict.fromkeys(ends))}.")
    return " ".join(parts)
