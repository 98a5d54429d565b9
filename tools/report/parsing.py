"""A record out of what a JSON file holds: the first thing that is wrong is told by file and field."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import fields as fields_of
from typing import Any

from mamba_export.errors import MambaExportError
from mamba_export.fields import (
    Boolean,
    Choice,
    Either,
    Fields,
    ListOf,
    Number,
    OrNone,
    Rule,
    Text,
    shown,
)
from report.shape import SCALES, STYLES, TASKS, Axis, Claim, Plot, Record, Series, Table

_TEXT = Text()
_WORDS = Text(r"(?s:.*\S.*)", "a text that says something")


class _AsItStands(Rule[Any]):
    """A number that stays an integer where it is one."""

    def holds(self, value: object) -> bool:
        return Number().holds(value)

    def __str__(self) -> str:
        return "a finite number"


_NUMBER = _AsItStands()
_TEXT_OR_NUMBER = Either(_WORDS, _NUMBER)
_CELLS = ListOf(OrNone(Either(_TEXT, _NUMBER)))


class _Date(Rule[str]):
    def holds(self, value: object) -> bool:
        try:
            return isinstance(value, str) and bool(datetime.date.fromisoformat(value))
        except ValueError:
            return False

    def __str__(self) -> str:
        return "a date such as 2026-11-26"


def parse(data: object, file: str) -> Record:
    """A record from plain values.

    Args:
        data: of its JSON.
        file: for the message.

    Raises:
        MambaExportError: a field is missing, unknown or not what a record's is.
    """

    def complain(problem: str) -> MambaExportError:
        return MambaExportError(f"{file} is not a record of a task: {problem}")

    fields = Fields(data, complain)
    _known(fields, Record)
    versions = fields.inside("versions")
    return Record(
        task=fields.take("task", Choice(TASKS)),
        title=fields.take("title", _WORDS),
        date=fields.take("date", _Date()),
        device=fields.take("device", _WORDS),
        commit=fields.take("commit", _WORDS),
        command=fields.take("command", _WORDS),
        versions={name: versions.take(name, _WORDS) for name in versions.data},
        driver=_optional(fields, "driver", _TEXT, ""),
        quick=_optional(fields, "quick", Boolean(), False),
        notes=tuple(_optional(fields, "notes", ListOf(_WORDS), ())),
        tables=tuple(map(_table, _each(fields, "tables"))),
        plots=tuple(map(_plot, _each(fields, "plots"))),
        claims=tuple(map(_claim, _each(fields, "claims"))),
    )


def _known(fields: Fields, kind: type) -> None:
    """Raise where an object has a field that its dataclass has not: a name that is misspelled."""
    names = [one.name for one in fields_of(kind)]
    for name in fields.data:
        if name not in names:
            raise fields.complain(
                f"{fields.where}{shown(name)} is unknown, expected one of {', '.join(names)}"
            )


def _optional(fields: Fields, name: str, rule: Rule[Any], default: Any) -> Any:
    return fields.take(name, rule) if name in fields.data else default


def _each(fields: Fields, name: str) -> list[Fields]:
    return fields.each(name) if name in fields.data else []


def _table(fields: Fields) -> Table:
    _known(fields, Table)
    columns = fields.take("columns", ListOf(_TEXT, shortest=1))
    rows = fields.take("rows", ListOf(_CELLS))
    for index, row in enumerate(rows):
        if len(row) != len(columns):
            raise fields.complain(
                f"{fields.where}rows[{index}] has {len(row)} cells, expected {len(columns)}, as columns has"
            )
    title = fields.take("title", _WORDS)
    cells = tuple(map(tuple, rows))
    return Table(title, tuple(columns), cells, _optional(fields, "note", _TEXT, ""))


def _plot(fields: Fields) -> Plot:
    _known(fields, Plot)
    x, y = _axis(fields.inside("x")), _axis(fields.inside("y"))
    return Plot(
        title=fields.take("title", _WORDS),
        x=x,
        y=y,
        series=tuple(_series(one, x, y) for one in fields.each("series")),
        note=_optional(fields, "note", _TEXT, ""),
    )


def _axis(fields: Fields) -> Axis:
    _known(fields, Axis)
    return Axis(
        label=fields.take("label", _WORDS),
        scale=_optional(fields, "scale", Choice(SCALES), SCALES[0]),
        names=tuple(_optional(fields, "names", ListOf(_WORDS), ())),
    )


def _series(fields: Fields, x: Axis, y: Axis) -> Series:
    _known(fields, Series)
    numbers: list[int | float] = fields.take("x", ListOf(_NUMBER))
    found: list[int | float | None] = fields.take("y", ListOf(OrNone(_NUMBER)))
    read = Series(
        name=fields.take("name", _WORDS),
        x=tuple(numbers),
        y=tuple(found),
        style=_optional(fields, "style", Choice(STYLES), STYLES[0]),
    )
    if len(read.x) != len(read.y):
        raise fields.complain(
            f"{fields.where}y has {len(read.y)} numbers, expected {len(read.x)}, as x has"
        )
    _check_places(fields, "x", x, read.x)
    _check_places(fields, "y", y, read.y)
    return read


def _check_places(fields: Fields, name: str, axis: Axis, values: Sequence[float | None]) -> None:
    """Raise where a number has no place on its axis."""
    for index, value in enumerate(values):
        if axis.names and value not in range(len(axis.names)):
            raise fields.complain(
                f"{fields.where}{name}[{index}] is {value}, expected the index of one of the axis's names"
            )
        if axis.scale != SCALES[0] and value is not None and value <= 0:
            raise fields.complain(
                f"{fields.where}{name}[{index}] is {value}, expected one above 0 ({axis.scale} axis)"
            )


def _claim(fields: Fields) -> Claim:
    _known(fields, Claim)
    return Claim(
        claim=fields.take("claim", _WORDS),
        published=fields.take("published", OrNone(_TEXT_OR_NUMBER)),
        ours=fields.take("ours", _TEXT_OR_NUMBER),
        holds=fields.take("holds", Boolean()),
        source=_optional(fields, "source", _TEXT, ""),
        headline=_optional(fields, "headline", Boolean(), False),
    )
