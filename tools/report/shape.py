"""The shape of a record: what a run of a task found, as the report shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.record import TASKS as TASKS

Number = int | float
Cell = str | int | float | None
"""A number is shown with its digits, None as a dash."""

SCALES = ("linear", "log", "log2")
"""Of an axis; "log2" has its ticks at powers of two, as lengths of texts have."""

STYLES = ("line", "dashed", "points")


@dataclass(frozen=True)
class Axis:
    """An axis of a plot.

    Args:
        label: what it is, with its unit.
        scale: one of ``SCALES``; a logarithmic one takes positive numbers alone.
        names: of the places 0, 1, 2, ..., for things that are no numbers: on a y axis they stand below one
            another, each with a point of every series.
    """

    label: str
    scale: str = "linear"
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Series:
    """A line of a plot.

    Args:
        name: for the legend.
        x, y: of each point; y is None where there is none, such as where memory ran out.
        style: one of ``STYLES``: "dashed" for limits, published figures and chance.
    """

    name: str
    x: Sequence[Number]
    y: Sequence[Number | None]
    style: str = "line"


@dataclass(frozen=True)
class Plot:
    """Lines in one pair of axes.

    Args:
        title: what is seen.
        note: what is to be said below it.
    """

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows below a head.

    Args:
        title: what it holds.
        columns: heads, with units.
        rows: of as many cells.
        note: what is to be said below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """What should be so, and what was found.

    Args:
        claim: in words, with its unit: "Mamba: accuracy at 1,048,576 tokens, %".
        published: the number or words of those who say so; None where nobody published any.
        ours: what this run found.
        holds: whether ours is what the claim says.
        source: where it is published: "arXiv:2312.00752, table 2".
        headline: whether the report's head shows it; where a task has no such claim, all are shown there.
    """

    claim: str
    published: str | int | float | None
    ours: str | int | float
    holds: bool
    source: str = ""
    headline: bool = False


@dataclass(frozen=True)
class Record:
    """What one run of a task found.

    Args:
        task: one of ``TASKS``.
        title: for people.
        date: as 2026-11-26.
        device: what computed: a GPU's name, or ``provenance.cpu_name()``.
        commit: of this repository.
        command: that made this record.
        versions: of the packages that it depends on.
        driver: of the GPU; empty without one.
        quick: whether it is a short run, made to see that the task works: no such record is committed.
        notes: sentences on how it was made, and on what it does not show.
    """

    task: str
    title: str
    date: str
    device: str
    commit: str
    command: str
    versions: dict[str, str]
    driver: str = ""
    quick: bool = False
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    claims: Sequence[Claim] = ()
