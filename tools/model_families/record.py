"""The record of a run of tools/families.py: what it holds, where it lies, how it is read and added to."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import provenance
from bench.record import FAMILIES_SUFFIX, write_whole
from mamba_export.errors import MambaExportError
from mamba_export.untrusted import read_json
from mamba_export.versions import installed_versions

ROOT = Path(__file__).resolve().parents[2]
RECORDS = "tools/records"

_PACKAGES = ("mamba_export", "torch", "onnxruntime", "onnx", "transformers", "timm", "einops")
_FIELDS: dict[str, type] = {
    "date": str,
    "device": str,
    "versions": dict,
    "commit": str,
    "command": str,
    "families": list,
}
_OF_A_FAMILY = ("family", "repository", "class", "status", "happened", "note")

STATUSES = {
    "right": "exported, and agrees with PyTorch",
    "wrong": "exported, and differs from PyTorch",
    "random": "exported, and draws at random: not compared",
    "not run": "exported, and does not run",
    "not exported": "built, and not exported",
    "not built": "not built here",
    "not there": "its repository was not there",
    "stopped": "stopped after its time",
}
"""What may have become of a family, best first."""

Record = dict[str, Any]


def new_record(command: str) -> Record:
    """A record without families: date, machine, versions, our commit."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": provenance.cpu_name(),
        "versions": installed_versions(*_PACKAGES),
        "commit": provenance.commit(ROOT),
        "command": command,
        "families": [],
    }


def path_in(place: Path, record: Record) -> Path:
    """The file of a record: ``place``, or in a folder DATE-families.json."""
    return place / f"{record['date']}{FAMILIES_SUFFIX}" if place.is_dir() else place


def continued(path: Path, record: Record) -> Record:
    """``record`` with the families of the file that is there already.

    Raises:
        MambaExportError: the file is of another commit, machine or other versions.
    """
    if not path.exists():
        return record
    old = read_record(path)
    for name in ("commit", "device", "versions"):
        if old[name] != record[name]:
            raise MambaExportError(f"{path} is a record of another {name}: give another file")
    commands = dict.fromkeys([*old["command"].split("; "), record["command"]])
    return {
        **record,
        "date": old["date"],
        "command": "; ".join(commands),
        "families": old["families"],
    }


def add(record: Record, result: Record, order: Sequence[str]) -> None:
    """Add a family's result, or replace the one that it had; in the order of the entries."""
    others = [one for one in record["families"] if one["family"] != result["family"]]
    record["families"] = sorted(
        [*others, result],
        key=lambda one: order.index(one["family"]) if one["family"] in order else len(order),
    )


def write(path: Path, record: Record) -> None:
    """Write a record whole, or not at all."""
    write_whole(path, json.dumps(record, indent=1) + "\n")


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        MambaExportError: the file cannot be read or is no record.
    """
    record = read_json(path)
    wrong = _wrong(record)
    if wrong:
        raise MambaExportError(f"{path} is not a record of tools/families.py ({wrong})")
    return record


def _wrong(record: Any) -> str:
    """The first field that is missing or of a wrong type; empty for a record."""
    if not isinstance(record, dict):
        return "no object"
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            return name
    for index, one in enumerate(record["families"]):
        texts = isinstance(one, dict) and all(
            isinstance(one.get(name), str) for name in _OF_A_FAMILY
        )
        if not texts or one["status"] not in STATUSES:
            return f"families[{index}]"
    return ""


def records(root: Path = ROOT) -> list[Record]:
    """The repository's records, oldest first, each with the families that no later one holds.

    So a new family has a record of its own until all are tried again.

    Raises:
        MambaExportError: there is none.
    """
    files = sorted((root / RECORDS).glob(f"*{FAMILIES_SUFFIX}"), reverse=True)
    if not files:
        raise MambaExportError(
            f"{RECORDS} holds no record of families: run with --record {RECORDS}"
        )
    kept: list[Record] = []
    seen: set[str] = set()
    for file in files:
        record = read_record(file)
        families = [one for one in record["families"] if one["family"] not in seen]
        seen |= {one["family"] for one in families}
        if families:
            kept.insert(0, {**record, "families": families})
    return kept
