"""The report's page, one HTML file: its head, then a section a task, all of it from records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from string import Template

from bench.record import TASKS
from report.elements import claims, made, numbered, paragraph, plots_and_tables
from report.sections import BANNER, SECTIONS, SPEED, Section, kind_of
from report.shape import Claim, Record

Records = Mapping[Path, Record]
_HERE = Path(__file__).parent


def page(found: Records, product: Records, link: Callable[[Path], str], quick: bool = False) -> str:
    """The page.

    Args:
        found: the newest record of each task and device, by its file.
        product: those of tools/benchmark.py.
        link: from the page to a record's file.
        quick: whether the records are of short runs on this machine.
    """
    head = [_navigation(found, product)]
    if any(record.claims for record in found.values()):
        head.append(_headlines(found, link))
    body = [_section(one, found, link, quick) for one in SECTIONS]
    if product:
        body.append(_speed(product, link))
    parts = {
        "style": (_HERE / "page.css").read_text("utf-8"),
        "outcome": escape(_outcome(found)),
        "banner": paragraph(BANNER, "banner") if quick else "",
        "head": "\n".join(head),
        "body": "\n".join(body),
    }
    return Template((_HERE / "page.html").read_text("utf-8")).substitute(parts)


def _of_task(found: Records, task: str) -> dict[Path, Record]:
    return {path: record for path, record in found.items() if record.task == task}


def _outcome(found: Records) -> str:
    """How many of the claims hold, and what has not been run."""
    claims = [claim for record in found.values() for claim in record.claims]
    run = {record.task for record in found.values()}
    if not run:
        return "No task has been run yet."
    held = sum(claim.holds for claim in claims)
    left = [one.title for one in SECTIONS if one.task not in run]
    not_run = f", and not yet run: {', '.join(left)}" if left else ""
    return f"Of {len(claims)} claims tested {held} hold{not_run}."


def _navigation(found: Records, product: Records) -> str:
    entries = []
    for one in SECTIONS:
        count = len(_of_task(found, one.task))
        told = "" if count else " (not run)"
        entries.append(f'<li><a href="#{one.task}">{escape(one.title)}</a>{told}</li>')
    if product:
        entries.append('<li><a href="#speed">Whole models beside mamba_ssm</a></li>')
    return f'<nav aria-label="Sections"><ul>{"".join(entries)}</ul></nav>'


def _of_head(record: Record) -> list[Claim]:
    """The claims of a record that the head shows: those that say so, else all."""
    return [claim for claim in record.claims if claim.headline] or list(record.claims)


def _headlines(found: Records, link: Callable[[Path], str]) -> str:
    rows = []
    for task in TASKS:
        for path, record in _of_task(found, task).items():
            where = f'<a class="date" href="{escape(link(path))}">{escape(record.date)}</a>'
            section = f'<a href="#{task}">{escape(record.title)}</a>'
            cells = [escape(record.device), f"{section} {where}"]
            rows += [(claim, cells) for claim in _of_head(record)]
    return claims(rows, "Claims", ["device", "record"])


def _section(one: Section, found: Records, link: Callable[[Path], str], quick: bool) -> str:
    mine = _of_task(found, one.task)
    parts = [f'<section id="{one.task}"><h2>{escape(one.title)}</h2>']
    parts.append(paragraph(f"{one.source[:1].upper()}{one.source[1:]}.", "source"))
    parts += [paragraph(text) for text in one.text]
    parts += _runs(mine, one.task, link)
    if not mine and not one.commands:
        parts.append(paragraph("Not run: nothing here runs it yet.", "missing"))
    missing = set(one.commands) - {kind_of(record.device) for record in mine.values()}
    for kind, command in one.commands.items():
        if kind in missing:
            told = "Not part of the quick version" if quick else f"Not run on {kind}"
            this = f"On {kind} this runs it" if quick else "This runs it"
            parts.append(f'<p class="missing">{told}. {this}: <code>{escape(command)}</code></p>')
    return "\n".join([*parts, "</section>"])


def _runs(records: Records, task: str, link: Callable[[Path], str]) -> list[str]:
    """What each record of a section holds, below its device."""
    numbers = numbered(plot for record in records.values() for plot in record.plots)
    return [
        _run(record, f"{task}-{index}", link(path), numbers)
        for index, (path, record) in enumerate(records.items())
    ]


def _run(record: Record, identity: str, file: str, numbers: Mapping[str, int]) -> str:
    short = ", a short run" if record.quick else ""
    parts = [f"<h3>On {escape(record.device)}{short}</h3>", made(record, file)]
    if record.claims:
        parts.append(claims([(claim, []) for claim in record.claims], "Claims", []))
    parts.append(plots_and_tables(record, identity, numbers))
    parts += [paragraph(note, "note") for note in record.notes]
    return "\n".join(part for part in parts if part)


def _speed(product: Records, link: Callable[[Path], str]) -> str:
    parts = ['<section id="speed"><h2>Whole models beside mamba_ssm</h2>', paragraph(SPEED)]
    return "\n".join([*parts, *_runs(product, "speed", link), "</section>"])
