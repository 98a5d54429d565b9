"""Rows as tables: for a terminal, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from bench.published import size_order
from bench.rows import LIMIT, OURS, Comparison, Row, comparisons, is_ours, is_peer
from mamba_export.printing import as_text

_IN_MICROSECONDS = ("scan", "step", "convolution", "dual", "dual step")


_LOG_WIDTH = 200


@dataclass(frozen=True)
class Grid:
    """A table: its title, header and lines of cells."""

    title: str
    header: list[str]
    lines: list[list[str]]


def number(value: float) -> str:
    """A time with three digits."""
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
    for comparison in comparisons(rows):
        slowest = max((row.milliseconds or 0.0 for row in comparison.rows), default=0.0)
        for row in comparison.rows:
            if row.milliseconds is None:
                lines.append([row.what, row.implementation, row.note, ""])
            else:
                times = ratio(slowest / row.milliseconds)
                name = f"{row.implementation} ({row.note})" if row.note else row.implementation
                lines.append([row.what, name, number(row.milliseconds), times])
    return Grid("", ["what", "implementation", "ms", "faster"], lines)


def _beside(kind: str, rows: Sequence[Row]) -> Grid:
    """Sizes, then a column an implementation, then ours compared: with the peers' best form and the limit."""
    scale, unit = (1e3, "us") if kind in _IN_MICROSECONDS else (1.0, "ms")
    names = list(dict.fromkeys(row.implementation for row in rows))
    names.sort(key=lambda name: (name == LIMIT, not is_ours(name)))  # ours, peers, limit
    peers = any(is_peer(name) for name in names)
    sizes = list(dict.fromkeys(name for row in rows for name in row.sizes))
    lines = []
    for one in sorted(comparisons(rows), key=_model_order):
        line = [str(one.rows[0].sizes.get(name, "")) for name in sizes]
        line += [_cell(one.row(name), scale) for name in names]
        line += [ratio(one.against_peer)] if peers else []
        lines.append([*line, ratio(one.against_limit)])
    compared = [*([f"best peer / {OURS}"] if peers else []), f"{OURS} / {LIMIT}"]
    header = [*sizes, *(f"{name}, {unit}" for name in names), *compared]
    return Grid(kind, header, lines)


def _model_order(one: Comparison) -> tuple[bool, int]:
    """Of models small before large, whichever was timed first; else as they were timed."""
    model = one.rows[0].sizes.get("model")
    return (False, 0) if model is None else size_order(model)


def _cell(row: Row | None, scale: float) -> str:
    if row is None:
        return ""
    if row.milliseconds is None:
        return row.note
    time = number(scale * row.milliseconds)
    return f"{time} ({row.note})" if row.note else time


def ratio(value: float | None) -> str:
    """A ratio with two digits; empty without one."""
    if not value:
        return ""
    digits = max(0, 1 - math.floor(math.log10(float(f"{value:.1e}"))))
    return f"{value:.{digits}f}x"


def print_rows(rows: Sequence[Row], device: str) -> None:
    """Print the tables of a run."""
    console = Console()
    if not console.is_terminal:  # a log has no width
        console.width = _LOG_WIDTH
    for grid in grids(rows):
        title = f"{device}: {grid.title}" if grid.title else device
        table = Table(
            title=as_text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for index, name in enumerate(grid.header):
            table.add_column(
                as_text(name), justify="left" if index == 0 else "right", overflow="fold"
            )
        before = ""
        for line in grid.lines:
            first = "" if not grid.title and line[0] == before else line[0]
            before = line[0]
            table.add_row(*map(as_text, (first, *line[1:])))
        console.print(table)


def markdown(grid: Grid) -> str:
    """A table as Markdown."""
    rule = "|".join("---" for _ in grid.header)
    lines = [f"| {' | '.join(grid.header)} |", f"|{rule}|"]
    lines += [f"| {' | '.join(line)} |" for line in grid.lines]
    return "\n".join(lines)
