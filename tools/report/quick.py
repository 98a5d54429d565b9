"""The quick version: each task's short run on this machine's CPU, and the page of those records."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.record import write_whole
from mamba_export.errors import MambaExportError
from report.page import page
from report.record import newest_records
from report.sections import SECTIONS, Section

RECORDS = "records"


def run_quick(
    root: Path,
    folder: Path,
    tasks: Sequence[str],
    progress: Callable[[str], None],
    sections: Sequence[Section] = SECTIONS,
) -> list[str]:
    """Run the short versions one after the other, and write the page after each.

    Args:
        root: of the repository, in which they run.
        folder: gets index.html and the records.
        tasks: to run; empty for all that have a short run.
        progress: is told what happens.
        sections: of the report, in place of its own.

    Returns:
        The tasks whose run failed.

    Raises:
        MambaExportError: a task is unknown or has no short run, or the page cannot be written.
    """
    chosen = _chosen(tasks, sections)
    records = folder / RECORDS
    records.mkdir(parents=True, exist_ok=True)
    for old in records.glob("*.json"):
        old.unlink()
    failed = []
    for section in chosen:
        progress(f"{section.title} ...")
        command = [sys.executable, *section.quick, "--record", str(records)]
        if subprocess.run(command, cwd=root, check=False).returncode:
            failed.append(section.task)
        _write(folder)
    _write(folder)
    return failed


def _write(folder: Path) -> None:
    found = newest_records(folder / RECORDS)
    text = page(found, {}, lambda path: f"{RECORDS}/{path.name}", quick=True)
    write_whole(folder / "index.html", text)


def _chosen(tasks: Sequence[str], sections: Sequence[Section]) -> list[Section]:
    able = {one.task: one for one in sections if one.quick}
    for task in tasks:
        if task not in able:
            raise MambaExportError(
                f"{task} has no short run, expected {', '.join(able) or 'none yet'}"
            )
    return [one for one in able.values() if not tasks or one.task in tasks]
