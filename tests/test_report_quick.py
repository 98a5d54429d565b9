"""The quick version of the report: short runs, and the page of their records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mamba_export.errors import MambaExportError
from report.quick import run_quick
from report.record import newest_records
from report.sections import SECTIONS, Section

ROOT = Path(__file__).parents[1]
WRITES = """\
import sys
sys.path[:0] = ["tools", "tests"]
from dataclasses import replace
import subprocess
import sys
from pathlib import Path
from report_samples import empty
from report.record import write_record
assert sys.argv[1] == "--record"
write_record(Path(sys.argv[2]), replace(empty("dna", "a CPU"), quick=True))
"""


def section(task: str, *quick: str) -> Section:
    return Section(task, f"Title of {task}", "a source", ("A text.",), {}, quick)


def test_short_runs_make_a_page(tmp_path: Path) -> None:
    told: list[str] = []
    sections = [section("dna", "-c", WRITES), section("audio", "-c", "exit(2)"), section("zoh")]
    out = tmp_path / "report"
    assert run_quick(ROOT, out, [], told.append, sections) == ["audio"]
    assert [one.partition(" ...")[0] for one in told] == ["Title of dna", "Title of audio"]
    text = (out / "index.html").read_text("utf-8")
    assert "a short run" in text
    assert "The quick version" in text
    assert 'href="records/2026-01-02-cpu-dna.json"' in text
    assert (out / "records/2026-01-02-cpu-dna.json").is_file()
    assert run_quick(ROOT, out, ["audio"], told.append, sections) == ["audio"]
    assert not list((out / "records").iterdir()), "records of an earlier run are on the page"


def test_a_task_without_a_short_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MambaExportError, match="zoh has no short run, expected dna"):
        run_quick(ROOT, tmp_path, ["zoh"], print, [section("dna", "-c", ""), section("zoh")])


def test_commands_of_sections_name_scripts_that_exist() -> None:
    for one in SECTIONS:
        if one.quick:
            assert (ROOT / one.quick[0]).is_file(), one.task
        for command in one.commands.values():
            program, script, *_ = command.split()
            assert program == "python"
            assert (ROOT / script).is_file(), command


@pytest.mark.slow
def test_the_command_runs_a_task_and_makes_the_page(tmp_path: Path) -> None:
    """What `make report QUICK=1` does for every task, with one of them."""
    command = [sys.executable, "tools/make_report.py", "--quick"]
    options = ["--task", "dna", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    [record] = newest_records(tmp_path / "out/records").values()
    assert record.quick
    text = (tmp_path / "out/index.html").read_text("utf-8")
    assert "The quick version" in text
    for claim in record.claims:
        assert claim.claim in text


def test_the_command_refuses_options_of_the_other_version() -> None:
    command = [sys.executable, "tools/make_report.py", "--task", "copying"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: --task and --out need --quick\n")
