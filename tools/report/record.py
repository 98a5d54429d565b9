"""The record of a task: what one run of it found, as a file that the report is made from.

    record = new_record("copying", "Selective copying", command, device=name_of_the_gpu, commit=given)
    record = replace(record, tables=[...], plots=[...], claims=[...])
    write_record(Path("tools/records"), record)  # 2026-11-26-h100-copying.json

A file is whole or not there. Write it again for every part that is added: a run that is stopped keeps what it
has. What the reader would refuse is not written.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import asdict
from pathlib import Path

from bench import provenance
from bench.record import write_whole
from mamba_export.errors import MambaExportError
from mamba_export.untrusted import read_json
from mamba_export.versions import installed_versions
from report.parsing import parse
from report.shape import (
    SCALES,
    STYLES,
    TASKS,
    Axis,
    Cell,
    Claim,
    Number,
    Plot,
    Record,
    Series,
    Table,
)

__all__ = [
    "RECORDS",
    "ROOT",
    "SCALES",
    "STYLES",
    "TASKS",
    "Axis",
    "Cell",
    "Claim",
    "Number",
    "Plot",
    "Record",
    "Series",
    "Table",
    "new_record",
    "newest_records",
    "path_in",
    "read_record",
    "write_record",
]

ROOT = Path(__file__).resolve().parents[2]
RECORDS = "tools/records"

_PACKAGES = (
    "mamba_export",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "transformers",
    "mamba_ssm",
    "tensorrt_rtx",
    "tensorrt",
)


def new_record(
    task: str,
    title: str,
    command: str,
    *,
    device: str | None = None,
    commit: str | None = None,
    quick: bool = False,
) -> Record:
    """A record without findings: date, device, versions, our commit.

    Args:
        task: one of ``TASKS``.
        title: for people.
        command: as ``provenance.shown_command(program, sys.argv[1:])`` shows it.
        device: name of the GPU that computes; None for this machine's processor.
        commit: for a copy without git's own folder.
        quick: whether it is a short run, made to see that the task works.

    Raises:
        MambaExportError: git does not tell the commit, and none is given.
    """
    there = {n: v for n, v in installed_versions(*_PACKAGES).items() if v != "not installed"}
    return Record(
        task=task,
        title=title,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        device=device or provenance.cpu_name(),
        commit=provenance.commit(ROOT, commit),
        command=command,
        versions=there,
        driver=provenance.driver_version() if device else "",
        quick=quick,
    )


def path_in(place: Path, record: Record) -> Path:
    """The file of a record: ``place``, or in a folder DATE-DEVICE-TASK.json, with "h100" or "cpu" as device."""
    if not place.is_dir():
        return place
    gpu = re.match(r"NVIDIA (?:GeForce |RTX )*([A-Za-z0-9]+)", record.device)
    device = gpu.group(1).lower() if gpu else "cpu"
    return place / f"{record.date}-{device}-{record.task}.json"


def write_record(place: Path, record: Record) -> Path:
    """Write a record whole, or not at all.

    Args:
        place: the file, or the folder that ``path_in`` names it in.

    Returns:
        The file.

    Raises:
        MambaExportError: a field is not what a record's is, or the file cannot be written.
    """
    path = path_in(place, record)
    text = json.dumps(asdict(record), indent=1)
    parse(json.loads(text), str(path))
    write_whole(path, text + "\n")
    return path


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        MambaExportError: the file cannot be read or is no record; the line names the field.
    """
    return parse(read_json(path), str(path))


def newest_records(folder: Path) -> dict[Path, Record]:
    """Of each task and device in a folder the newest record, by its file, in the order of ``TASKS``.

    Raises:
        MambaExportError: a file that has a task's name is no record of it.
    """
    found: dict[tuple[str, str], tuple[Path, Record]] = {}
    for task in TASKS:
        read = [(path, read_record(path)) for path in sorted(folder.glob(f"*-{task}.json"))]
        for path, record in read:
            if record.task != task:
                raise MambaExportError(f"{path}: task is {record.task!r}, expected {task!r}")
        for path, record in sorted(read, key=lambda one: one[1].date):  # of equal dates the last
            found[task, record.device] = (path, record)
    return dict(found.values())
