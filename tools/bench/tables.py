"""Rows as tables: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from bench.record import LIMIT, OURS, Row

_IN_MICROSECONDS = ("scan", "scan, inputs in the cache", "step", "convolution")


@dataclass(frozen=True)
class Grid:
    """A table: its title, header and lines of cells."""

    title: str
    header: list[str]
    lines: list[list[str]]


def _groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.what, []).append(row)
    return groups


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def grids(rows: Sequence[Row]) -> list[Grid]:
    """The tables of a run: one of implementations below each other for rows without a kind, and for each
    kind one with a column for each implementation."""
    plain = [row for row in rows if not row.kind]
    made = [_stacked(plain)] if plain else []
    for kind in dict.fromkeys(row.kind for row in rows if row.kind):
        made.append(_beside(kind, [row for row in rows if row.kind == kind]))
    return made


def _stacked(rows: Sequence[Row]) -> Grid:
    lines = []
    for what, group in _groups(rows).items():
        slowest = max((row.milliseconds or 0.0 for row in group), default=0.0)
        for row in group:
            if row.milliseconds is None:
                lines.append([what, row.implementation, row.note, ""])
            else:
                times = f"{slowest / row.milliseconds:.1f}x"
                lines.append([what, row.implementation, _number(row.milliseconds), times])
    return Grid("", ["what", "implementation", "ms", "faster"], lines)


def _beside(kind: str, rows: Sequence[Row]) -> Grid:
    """Sizes, then a column an implementation, then ours compared: with the fastest rival and the limit."""
    scale, unit = (1e3, "us") if kind in _IN_MICROSECONDS else (1.0, "ms")
    names = list(dict.fromkeys(row.implementation for row in rows))
    names.sort(key=lambda name: (name == LIMIT, not name.startswith(OURS)))  # ours, rivals, limit
    rivals = [name for name in names if not name.startswith(OURS) and name != LIMIT]
    sizes = list(dict.fromkeys(name for row in rows for name in row.sizes))
    compared = [*(f"{rival} / {OURS}" for rival in rivals[:1]), f"{OURS} / {LIMIT}"]
    lines = []
    for group in _groups(rows).values():
        found = {row.implementation: row for row in group}
        times = {row.implementation: row.milliseconds for row in group if row.milliseconds}
        line = [str(group[0].sizes.get(name, "")) for name in sizes]
        line += [_cell(found.get(name), scale) for name in names]
        line += [_ratio(times.get(rival), times.get(OURS)) for rival in rivals[:1]]
        line.append(_ratio(times.get(OURS), times.get(LIMIT)))
        lines.append(line)
    header = [*sizes, *(f"{name}, {unit}" for name in names), *compared]
    return Grid(kind, header, lines)


def _cell(row: Row | None, scale: float) -> str:
    if row is None:
        return ""
    if row.milliseconds is None:
        return row.note
    time = _number(scale * row.milliseconds)
    return f"{time} ({row.note})" if row.note else time


def _ratio(time: float | None, unit: float | None) -> str:
    return "" if not time or not unit else f"{time / unit:.2g}x"


def print_rows(rows: Sequence[Row], device: str) -> None:
    """Print the tables of a run."""
    console = Console()
    for grid in grids(rows):
        title = f"{device}: {grid.title}" if grid.title else device
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(grid.header):
            table.add_column(name, justify="left" if index == 0 else "right")
        before = ""
        for line in grid.lines:
            first = "" if not grid.title and line[0] == before else line[0]
            before = line[0]
            table.add_row(first, *line[1:])
        console.print(table)


def markdown(grid: Grid) -> str:
    """A table as Markdown."""
    rule = "|".join("---" for _ in grid.header)
    lines = [f"| {' | '.join(grid.header)} |", f"|{rule}|"]
    lines += [f"| {' | '.join(line)} |" for line in grid.lines]
    return "\n".join(lines)
