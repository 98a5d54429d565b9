"""Records of tasks: what is written is read again, and what is wrong is named by file and field."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench.page import load_records
from mamba_export.errors import MambaExportError
from report.record import (
    RECORDS,
    Axis,
    Claim,
    Plot,
    Record,
    Series,
    Table,
    new_record,
    newest_records,
    read_record,
    write_record,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def record() -> Record:
    made = new_record("copying", "Selective copying", "python t.py", commit="abc")
    return replace(
        made,
        notes=("Trained for 8 minutes.",),
        tables=(Table("Accuracy", ("mixer", "%"), (("S6", 99.5), ("S4D", None)), "of 1024"),),
        plots=(
            Plot(
                "Accuracy against length",
                Axis("tokens", "log2"),
                Axis("accuracy, %"),
                (Series("Mamba", (64, 2**20), (100, None)), Series("chance", (64,), (6.25,), "dashed")),
            ),
        ),
        claims=(Claim("S6 solves it", 99.8, "99.5 %", True, "arXiv:2312.00752, table 1", True),),
    )  # fmt: skip


def test_record_is_read_as_it_was_written(record: Record, tmp_path: Path) -> None:
    path = write_record(tmp_path, record)
    assert path.name == f"{record.date}-cpu-copying.json"
    assert read_record(path) == record
    assert record.versions["torch"]
    assert "not installed" not in record.versions.values()
    on_gpu = replace(record, device="NVIDIA H100 80GB HBM3")
    assert write_record(tmp_path, on_gpu).name == f"{record.date}-h100-copying.json"


def test_sequences_may_be_lists(record: Record, tmp_path: Path) -> None:
    as_lists = replace(record, notes=list(record.notes), tables=list(record.tables))
    assert read_record(write_record(tmp_path, as_lists)) == record


def test_optional_fields_may_be_absent(record: Record, tmp_path: Path) -> None:
    needed = ("task", "title", "date", "device", "commit", "command", "versions")
    path = tmp_path / "r.json"
    path.write_text(json.dumps({name: asdict(record)[name] for name in needed}))
    assert read_record(path) == replace(record, notes=(), tables=(), plots=(), claims=())


WRONG: list[tuple[str, Any]] = [
    ("task", "cooking"),
    ("title", ""),
    ("date", "yesterday"),
    ("versions", ["torch"]),
    ("versions.torch", 2),
    ("quick", "no"),
    ("notes[0]", ""),
    ("tables", {}),
    ("tables[0]", 3),
    ("tables[0].columns", []),
    ("tables[0].rows", [["S6", [1]]]),
    ("tables[0].rows[1]", ["S6"]),
    ("tables[0].rows", [["S6", True]]),
    ("plots[0].x", "tokens"),
    ("plots[0].y.scale", "cubic"),
    ("plots[0].y.names", [""]),
    ("plots[0].series[0].name", None),
    ("plots[0].series[0].x[0]", 0),
    ("plots[0].series[0].y", [1]),
    ("plots[0].series[0].y", [1, "2"]),
    ("plots[0].series[1].style", "thick"),
    ("claims[0].ours", None),
    ("claims[0].holds", 1),
    ("claims[0].published", [99.8]),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{f}={v}" for f, v in WRONG])
def test_what_is_wrong_is_named(record: Record, tmp_path: Path, field: str, value: Any) -> None:
    data = json.loads(json.dumps(asdict(record)))
    *way, last = [int(one) if one.isdigit() else one for one in field_names(field)]
    inner: Any = data
    for name in way:
        inner = inner[name]
    inner[last] = value
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    with pytest.raises(MambaExportError) as caught:
        read_record(path)
    told = str(caught.value)
    assert told.startswith(f"{path} is not a record of a task: ")
    assert field.removesuffix("[0]") in told or field in told
    assert "\n" not in told


def test_places_are_those_of_names(record: Record, tmp_path: Path) -> None:
    named = Plot("t", Axis("%"), Axis("mixer", names=("S4", "S6")), (Series("a", (1, 2), (0, 2)),))
    with pytest.raises(
        MambaExportError, match=r"plots\[0\]\.series\[0\]\.y\[1\] is 2, expected the"
    ):
        write_record(tmp_path, replace(record, plots=(named,)))


def field_names(field: str) -> list[str]:
    return field.replace("[", ".").replace("]", "").split(".")


@pytest.mark.parametrize("field", ["task", "command", "versions"])
def test_what_is_missing_or_misspelled_is_named(record: Record, tmp_path: Path, field: str) -> None:
    path = tmp_path / "r.json"
    data = asdict(record)
    path.write_text(json.dumps({name: data[name] for name in data if name != field}))
    with pytest.raises(MambaExportError, match=rf"r\.json .*{field} is missing"):
        read_record(path)
    data["claims"][0]["hold"] = True
    path.write_text(json.dumps(data))
    with pytest.raises(MambaExportError, match=r"claims\[0\]\.'hold' is unknown"):
        read_record(path)


def test_what_would_not_be_read_is_not_written(record: Record, tmp_path: Path) -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(MambaExportError, match=r"tables\[0\]\.rows"):
            write_record(tmp_path, replace(record, tables=[Table("t", ["%"], [[bad]])]))
    assert list(tmp_path.iterdir()) == []


def test_newest_of_each_task_and_device(record: Record, tmp_path: Path) -> None:
    for date in ("2026-01-02", "2026-01-01"):
        write_record(tmp_path, replace(record, date=date))
    write_record(tmp_path, replace(record, date="2025-01-01", device="NVIDIA H100"))
    write_record(tmp_path, replace(record, task="zoh"))
    found = newest_records(tmp_path)
    assert [(one.task, one.date) for one in found.values()] == [
        ("copying", "2025-01-01"),
        ("copying", "2026-01-02"),
        ("zoh", record.date),
    ]
    path = tmp_path / "2026-01-03-cpu-cost.json"
    path.write_text(json.dumps(asdict(record)))
    with pytest.raises(MambaExportError, match=r"cpu-cost\.json: task is 'copying'"):
        newest_records(tmp_path)


def test_benchmarks_leave_these_records_alone(record: Record, tmp_path: Path) -> None:
    (tmp_path / RECORDS).mkdir(parents=True)
    write_record(tmp_path / RECORDS, record)
    assert load_records(tmp_path).valid == []


def test_no_committed_record_is_of_a_short_run() -> None:
    assert not [path for path, one in newest_records(ROOT / RECORDS).items() if one.quick]
