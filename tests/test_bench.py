"""Benchmarks: records, the README's table, and a small run. No time gates anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mamba_export.bench import Row, markdown_table, new_record, operator_rows, update_readme
from mamba_export.bench import operators as operators_module
from mamba_export.bench.timing import median_milliseconds

ROOT = Path(__file__).parent.parent
ROWS = [
    Row("scan", "slow", 10.0), Row("scan", "fast", 2.0), Row("scan", "absent", None, "not installed"),
]  # fmt: skip


def test_table_compares_with_the_slowest() -> None:
    table = markdown_table([new_record(ROWS, "a machine", "a command")])
    assert "| scan | fast | 2 | 5.0x |" in table
    assert "| scan | absent | not installed |  |" in table


def test_readme_table_is_replaced(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    readme.write_text(text, encoding="utf-8")
    update_readme(readme, [new_record(ROWS, "a machine", "a command")])
    update_readme(readme, [new_record(ROWS, "another machine", "a command")])
    written = readme.read_text(encoding="utf-8")
    assert "another machine" in written
    assert "a machine (" not in written
    readme.write_text("no table")
    with pytest.raises(ValueError, match="lacks the line"):
        update_readme(readme, [])


def test_readme_holds_the_records() -> None:
    files = sorted((ROOT / "tools" / "records").glob("*.json"), reverse=True)
    table = markdown_table([json.loads(file.read_text()) for file in files])
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_operators_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators_module, "SHAPES", ((1, 32, 8),))
    monkeypatch.setattr(operators_module, "median_milliseconds", lambda call: (call(), 1.0)[1])
    names = [row.implementation for row in operator_rows()]
    assert names[0] == "PyTorch, vectorised"
    assert "ONNX Runtime, function body" in names


def test_median_repeats() -> None:
    calls: list[int] = []
    assert median_milliseconds(lambda: calls.append(1), seconds=0.0) >= 0
    assert len(calls) == 4, "one to warm up, three timed"
