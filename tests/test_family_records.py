"""Families: entries, records of runs, and the page that is made of them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench.page import load_records
from mamba_export.errors import MambaExportError
from model_families import family, trial
from model_families.entries import FAMILIES
from model_families.page import PAGE, page, write_page
from model_families.record import (
    STATUSES,
    add,
    continued,
    new_record,
    path_in,
    read_record,
    records,
    write,
)

ROOT = Path(__file__).parent.parent
CLASS = """
import torch
from mamba_ssm import Mamba

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mamba = Mamba(16)

    def forward(self, x):
        return self.mamba(x)
{more}
"""


def test_page_is_what_the_records_make() -> None:
    said = f"{PAGE} is not what the records make: python tools/families.py --docs"
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(records()), said


def _families() -> list[dict]:
    return [one for record in records() for one in record["families"]]


def test_records_hold_every_entry_with_its_commit() -> None:
    assert sorted(one["family"] for one in _families()) == sorted(FAMILIES)
    for record in records():
        assert "changed" not in record["commit"], "a record is made of a clean tree"
    for one in _families():
        entry = FAMILIES[one["family"]]
        assert (one["repository"], one["class"]) == (entry.repository, entry.cls)
        assert len(one["commit"]) == 40, "of the repository, unchanged"
        assert (one["status"] == "right") is not bool(one["happened"])


def test_record_s_errors_are_below_the_tolerance() -> None:
    right = [one for one in _families() if one["status"] == "right"]
    assert len(right) >= 12
    for one in right:
        assert max(one["error"], one["error_without_library"]) <= trial.TOLERANCE
        assert sum(one["ours"].values()) > 0
        assert bool(one["swept"]) is bool(one["dynamic"]), "what is dynamic is tried at other sizes"


def test_benchmarks_leave_these_records_alone() -> None:
    assert all("rows" in record for record in load_records(ROOT).valid)


@pytest.fixture
def empty() -> dict:
    return {**new_record("a command"), "commit": "abc"}


def _result(name: str, status: str = "right", **more: object) -> dict:
    texts = dict.fromkeys(("family", "repository", "class", "happened", "note"), name)
    return {**texts, "status": status, "commit": "1" * 40, **more}


def test_record_is_added_to(empty: dict, tmp_path: Path) -> None:
    file = path_in(tmp_path, empty)
    assert file.name == f"{empty['date']}-families.json"
    add(empty, _result("two"), ["one", "two"])
    write(file, empty)
    again = continued(file, {**empty, "command": "another", "families": []})
    add(again, _result("two", "wrong"), ["one", "two"])
    add(again, _result("one"), ["one", "two"])
    assert [(one["family"], one["status"]) for one in again["families"]] == [
        ("one", "right"),
        ("two", "wrong"),
    ]
    assert again["command"] == "a command; another"
    with pytest.raises(MambaExportError, match="another commit"):
        continued(file, {**empty, "commit": "def"})


def test_bad_record_is_named(empty: dict, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    for bad in ([], {**empty, "versions": 3}, {**empty, "families": [{"family": "a"}]}):
        file.write_text(json.dumps(bad))
        with pytest.raises(MambaExportError, match=r"r\.json is not a record of tools/families"):
            read_record(file)
    with pytest.raises(MambaExportError, match="holds no record of families"):
        records(tmp_path)


def test_later_record_replaces_the_families_that_it_holds(empty: dict, tmp_path: Path) -> None:
    place = tmp_path / "tools/records"
    place.mkdir(parents=True)
    for day, names in (("01", "ab"), ("02", "a"), ("03", "bc")):
        record = {**empty, "date": f"2026-01-{day}", "families": [_result(one) for one in names]}
        write(path_in(place, record), record)
    kept = [(one["date"], [f["family"] for f in one["families"]]) for one in records(tmp_path)]
    assert kept == [("2026-01-02", ["a"]), ("2026-01-03", ["b", "c"])]
    text = page(records(tmp_path))
    assert "3 of 3 are exported" in text
    assert "Measured on 2026-01-02, " in text
    assert "b, c: measured on 2026-01-03, " in text


def test_page_says_what_happened_to_each(empty: dict, tmp_path: Path) -> None:
    numbers = {
        "error": 1e-7, "error_without_library": 2e-7, "ours": {"SelectiveScan": 4}, "reversed": 2, "nodes": 9,
        "traced": "1x2", "swept": ["3x4"], "truth": "fp32 (a | reason)", "dynamic": ["batch"],
    }  # fmt: skip
    add(empty, _result("good", **numbers), [])
    for status in list(STATUSES)[2:]:
        add(empty, _result(status, status), [])
    (tmp_path / "docs").mkdir()
    (tmp_path / "tools/records").mkdir(parents=True)
    write(path_in(tmp_path / "tools/records", empty), empty)
    text = write_page(tmp_path).read_text()
    assert "| 1x2 | 3x4 | 4 SelectiveScan | 2 | 9 | 1e-07 | 2e-07 | fp32 |" in text
    for status in list(STATUSES)[2:]:
        assert f"| {STATUSES[status]}: {status} |" in text


# A family's trial, on a repository that is made here


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(more: str = "", folder: str = "Small", build: str = "Small") -> dict:
        root = tmp_path / "Small"
        root.mkdir()
        (root / "small_family.py").write_text(CLASS.format(more=more))
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "small_family", raising=False)
        monkeypatch.setattr(trial.provenance, "commit", lambda _: "1" * 40)
        monkeypatch.setattr(family, "FAMILIES", {})

        @family.family(f"us/{folder}", "small_family.Small")
        def _entry(root: Path) -> family.Trial:
            family.on_path(root)
            import small_family  # type: ignore[import-not-found]

            return family.Trial(
                getattr(small_family, build)(),
                lambda batch, length: (torch.randn(batch, length, 16),),
                traced={"batch": 2, "length": 8},
                swept=({"batch": 1, "length": 33},),
                axes=({0: "batch", 1: "length"},),
                reduced="all",
            )

        from mamba_export.adapters import installed

        with installed():
            return trial.tried(family.FAMILIES[folder], tmp_path)

    return run


def test_family_is_exported_and_compared(tried) -> None:
    result = tried()
    assert result["status"] == "right", result["happened"]
    assert (result["traced"], result["swept"]) == ("2x8x16", ["1x33x16"])
    assert result["dynamic"] == ["batch", "length"]
    assert result["truth"] == "float64"
    assert result["ours"]


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ("import no_such_package", "not built", "needs the package no_such_package: pip install"),
        ("Small().to('cuda:7')", "not built", "(small_family.py, line "),
        (
            "class Small(Small):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x",
            "not exported",
            "ExportError: ",
        ),
        (
            "class Small(Small):\n    def forward(self, x):\n        return x + torch.randn_like(x)",
            "random",
            "two runs in PyTorch differ",
        ),
    ],
)
def test_what_happened_is_one_line(tried, more: str, status: str, said: str) -> None:
    result = tried(more)
    assert result["status"] == status, result
    assert said in result["happened"]
    assert "\n" not in result["happened"]
    assert str(ROOT) not in result["happened"]


def test_repository_that_is_not_there(tried) -> None:
    result = tried(folder="Other")
    assert (result["status"], result["happened"]) == ("not there", "no folder Other")


# The command


def _command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("families", ROOT / "tools/families.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give --repositories FOLDER"),
        ({"repositories": Path("none")}, "none is no folder"),
        ({"repositories": Path(), "family": ["none"]}, "there is no family none: one of VMamba"),
    ],
)
def test_command_names_what_is_wrong(arguments: dict, said: str) -> None:
    with pytest.raises(MambaExportError, match=said):
        _command().main(**arguments)


def test_command_tries_a_family_in_a_process(tmp_path: Path) -> None:
    paths = [str(ROOT), *sys.path[1:]]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/families.py"), "--repositories", ".", "--family", "VMamba"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "VMamba: not there: no folder VMamba" in done.stderr
    assert "Traceback" not in done.stderr
