"""What a benchmark run leaves: rows, and one JSON file of them that is whole at every moment."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any

from bench.rows import Row
from bench.validity import RefusedRecordError, check_limits
from mamba_export.errors import MambaExportError
from mamba_export.files import new_file, write_text
from mamba_export.untrusted import read_json
from mamba_export.versions import installed_versions

REFUSED_SUFFIX = ".refused.json"
FAMILIES_SUFFIX = "-families.json"
TASKS = ("copying", "induction", "cost", "sensors", "dna", "audio", "zoh")
"""What tools/report has records of, in its order."""
SUFFIXES_OF_OTHERS = (FAMILIES_SUFFIX, *(f"-{task}.json" for task in TASKS))
"""Ends of the names of records that lie in the same folder and are not of tools/benchmark.py."""
_PACKAGES = ("mamba_export", "torch", "onnxruntime", "transformers", "llama_cpp_python")


def new_record(
    rows: Sequence[Row],
    device: str,
    command: str,
    versions: dict[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A record as plain values.

    Args:
        rows: the measurements.
        device: processor or GPU.
        command: that made it.
        versions: of the packages that it depends on; None for those of the CPU's.
        more: what else belongs in it, such as "commit", "driver", "method", "ceilings" and "note"; None is
            left out.

    Raises:
        RefusedRecordError: a row beats its limit.
    """
    check_limits(rows, "the record")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": device,
        "versions": installed_versions(*_PACKAGES) if versions is None else versions,
        "command": command,
        **{name: value for name, value in more.items() if value is not None},
        "rows": [_plain(row) for row in rows],
    }


def _plain(row: Row) -> dict[str, Any]:
    values = asdict(row)
    if not row.kind:  # the CPU's rows have no sizes of their own
        del values["kind"], values["sizes"]
    return values


def rows_of(record: dict[str, Any]) -> list[Row]:
    """The rows of a record."""
    return [Row(**row) for row in record["rows"]]


class RecordFile:
    """A record on disk that is written again after every row, so that a run that is killed keeps what it has.

    A file that is there already is added to: rows of the same table, sizes and implementation are replaced,
    the others stay, and so does the date. So a run may be made in parts.

    Args:
        path: the file, or a folder in which it is named DATE-device.json.
        record: from ``new_record``, without rows.

    Raises:
        MambaExportError: the file cannot be read or written, or was made by another commit, device, driver
            or other versions.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        if path.is_dir():
            device = re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
            path = path / f"{record['date']}-{device}.json"
        self.path = path
        self._record = {**record, "rows": []}
        if path.exists():
            self._continue(read_record(path))
        self._write()

    def add(self, row: Row) -> None:
        """Add a row, or replace the one that it measures again."""
        rows = self._record["rows"]
        new = _plain(row)
        same = [index for index, old in enumerate(rows) if _key(old) == _key(new)]
        if same:
            rows[same[0]] = new
        else:
            rows.append(new)
        self._write()

    def finish(self) -> None:
        """Compare the whole record with its limits; one that beats them is kept under another name.

        Raises:
            RefusedRecordError: a row beats its limit; the file's name now ends in ``.refused.json``.
        """
        try:
            check_limits(rows_of(self._record), str(self.path))
        except RefusedRecordError as error:
            refused = self.path.with_suffix(REFUSED_SUFFIX)
            self.path.replace(refused)
            self.path = refused
            raise RefusedRecordError(f"{error}; it is kept as {refused.name}") from None

    def _continue(self, old: dict[str, Any]) -> None:
        for name in ("device", "driver", "versions", "commit"):
            if old.get(name) != self._record.get(name):
                raise MambaExportError(
                    f"{self.path} is a record of another {name.removesuffix('s')}: give another file"
                )
        commands = [*old["command"].split("; "), self._record["command"]]
        self._record = {
            **old,  # its note, where this run has none
            **self._record,
            "date": old["date"],
            "command": "; ".join(dict.fromkeys(commands)),
            "rows": old["rows"],
        }

    def _write(self) -> None:
        write_whole(self.path, json.dumps(self._record, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is never seen half written.

    Raises:
        MambaExportError: it cannot be written.
    """
    with new_file(path) as temporary:
        write_text(temporary, text)


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["what"], row["implementation"]


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        MambaExportError: the file cannot be read or is no record.
    """
    record = read_json(path)
    wrong = _wrong(record)
    if wrong:
        raise MambaExportError(f"{path} is not a record of tools/benchmark.py ({wrong})")
    return record


_TEXTS = ("date", "device", "command")
_TEXTS_OR_ABSENT = ("commit", "driver", "method", "note")
_ROW_TYPES: dict[str, type | tuple[type, ...]] = {
    "what": str,
    "implementation": str,
    "milliseconds": (int, float, NoneType),
    "note": str,
    "kind": str,
    "sizes": dict,
}
"""Of the fields of ``Row``."""


def _wrong(record: Any) -> str:
    """The first field that is missing or of a wrong type; empty for a record."""
    if not isinstance(record, dict):
        return "no object"
    for name in (*_TEXTS, *(one for one in _TEXTS_OR_ABSENT if one in record)):
        if not isinstance(record.get(name), str):
            return name
    try:
        datetime.date.fromisoformat(record["date"])
    except ValueError:
        return "date"
    for name in ("versions", "ceilings"):
        if not isinstance(record.get(name, {}), dict):
            return name
    if "versions" not in record or not isinstance(record.get("rows"), list):
        return "versions" if "versions" not in record else "rows"
    needed = {
        field.name
        for field in dataclasses.fields(Row)
        if field.default is field.default_factory is dataclasses.MISSING
    }
    for index, row in enumerate(record["rows"]):
        if not isinstance(row, dict) or needed - set(row) or set(row) - set(_ROW_TYPES):
            return f"rows[{index}]"
        for name, value in row.items():
            if not isinstance(value, _ROW_TYPES[name]) or isinstance(value, bool):
                return f"rows[{index}].{name}"
    return ""
