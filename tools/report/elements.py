"""Elements of the page: tables, claims, plots with their legends and numbers, what made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from report.numbers import cell_text
from report.shape import Cell, Claim, Number, Plot, Record, Table
from report.svg import draw, swatch

_MOST_COMMANDS = 3
"""A run of more shows them when it is asked to."""

_MOST_NUMBERS = 40
"""Points a line may have for its numbers to be listed below the plot."""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; ``kind`` is its class."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def table(one: Table) -> str:
    """A table below its title."""
    note = paragraph(one.note, "note") if one.note else ""
    return f"<h4>{escape(one.title)}</h4>\n{_scrolling(one)}{note}"


def _scrolling(one: Table) -> str:
    """A table without its title; where the page is narrow it scrolls by itself."""
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(one.title)}">'
    return f"{region}{_plain(one)}</div>"


def _plain(one: Table) -> str:
    numeric = [_is_numeric(column) for column in zip(*one.rows, strict=True)]
    kinds = ["number" if numeric else "" for numeric in numeric] or [""] * len(one.columns)
    kinds[0] = ""  # what a row is of stands at the left
    head = "".join(
        f'<th scope="col"{_class(kind)}>{escape(name)}</th>'
        for name, kind in zip(one.columns, kinds, strict=True)
    )
    lines = []
    for row in one.rows:
        cells = [
            f"<{_tag(index)}{_class(kinds[index])}>{escape(cell_text(value))}</{_tag(index)[:2]}>"
            for index, value in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{_lines(lines)}</tbody></table>"


def _tag(index: int) -> str:
    return "td" if index else 'th scope="row"'


def _is_numeric(column: Iterable[Cell]) -> bool:
    there = [value for value in column if value is not None]
    return all(not isinstance(value, str) for value in there)


def claims(rows: Iterable[tuple[Claim, Sequence[str]]], title: str, more: Sequence[str]) -> str:
    """Claims, the published figure beside ours.

    Args:
        rows: each with the HTML of further cells.
        title: of the table.
        more: heads of the further cells.
    """
    names = ("claim", "published", "ours", "", *more)
    head = "".join(f'<th scope="col">{escape(name) or "outcome"}</th>' for name in names)
    lines = []
    for claim, cells in rows:
        published = (
            "not published" if claim.published is None else escape(cell_text(claim.published))
        )
        if claim.source:
            published += f' <span class="of">{escape(claim.source)}</span>'
        good = '<span class="good">✓ holds</span>'
        bad = '<span class="bad">✗ does not hold</span>'
        values = [published, escape(cell_text(claim.ours)), good if claim.holds else bad, *cells]
        shown = "".join(
            f'<td data-head="{escape(name or "outcome")}">{value}</td>'
            for name, value in zip(names[1:], values, strict=True)
        )
        lines.append(f'<tr><th scope="row">{escape(claim.claim)}</th>{shown}</tr>')
    return (
        f'<table class="claims"><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{_lines(lines)}</tbody></table>"
    )


def numbered(some: Iterable[Plot]) -> dict[str, int]:
    """A number for each name of a line, for its colour and marker: the same in all of the plots."""
    names = dict.fromkeys(series.name for plot in some for series in plot.series)
    return {name: index for index, name in enumerate(names)}


def plots_and_tables(record: Record, identity: str, numbers: Mapping[str, int]) -> str:
    """The plots of a record beside one another, each with its numbers folded below it; then the tables.

    A table of a plot's title holds that plot's numbers.

    Args:
        identity: what their elements' names begin with.
        numbers: of the lines, from ``numbered``.
    """
    titles = [plot.title for plot in record.plots]
    drawn = []
    for index, plot in enumerate(record.plots):
        own = [one for one in record.tables if one.title == plot.title] or _numbers(plot)
        drawn.append(_figure(plot, own, f"{identity}-{index}", numbers))
    shown = [f'<div class="plots">{_lines(drawn)}</div>'] if drawn else []
    return _lines([*shown, *(table(one) for one in record.tables if one.title not in titles)])


def _figure(plot: Plot, tables: Sequence[Table], identity: str, numbers: Mapping[str, int]) -> str:
    entries = [
        f"<li>{swatch(series, numbers[series.name])}{escape(series.name)}</li>"
        for series in plot.series
    ]
    parts = [
        f'<figure id="{identity}"><figcaption>{escape(plot.title)}</figcaption>',
        draw(plot, identity, numbers),
        f'<ul class="legend">{"".join(entries)}</ul>',
    ]
    if plot.note:
        parts.append(paragraph(plot.note, "note"))
    if tables:
        listed = [_scrolling(one) for one in tables]
        parts.append(f"<details><summary>Numbers</summary>{_lines(listed)}</details>")
    return "\n".join([*parts, "</figure>"])


def _numbers(plot: Plot) -> list[Table]:
    """What a plot shows, with a row for each place on the x axis, or for each name on the y axis.

    Nothing for a plot of many points.
    """
    if any(len(series.x) > _MOST_NUMBERS for series in plot.series):
        return []
    columns = [plot.x.label, *(series.name for series in plot.series)]
    named, places = (plot.y.names, "y") if plot.y.names else (plot.x.names, "x")
    found: list[dict[Number | None, Cell]] = []
    for series in plot.series:
        pairs = zip(series.x, series.y, strict=True)
        found.append({b: a for a, b in pairs} if places == "y" else dict(pairs))
    rows = [
        [named[int(at)] if named else at, *(of.get(at) for of in found)]
        for at in sorted({at for of in found for at in of if at is not None})
    ]
    return [Table(plot.title, columns, rows)]


def made(record: Record, file: str = "") -> str:
    """Date, commit, versions and the command of a record."""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    driver = f", driver {record.driver}" if record.driver else ""
    said = f"{record.date}, commit {record.commit[:10]}{driver}; {versions}."
    link = f' <a href="{escape(file)}">record</a>' if file else ""
    commands = record.command.split("; ")
    shown = f"<pre><code>{escape(_lines(commands))}</code></pre>"
    if len(commands) > _MOST_COMMANDS:
        shown = f"<details><summary>{len(commands)} commands</summary>{shown}</details>"
    return f'<p class="made">{escape(said)}{link}</p>{shown}'


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
