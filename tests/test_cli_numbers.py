"""Numbers out of range in options of the command line: one line and code 2, whatever their size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mamba_export import export
from mamba_export.cli import main
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.models import MambaLM, checkpoints

HUGE = [str(2**31), str(2**63), str(2**64), "-1", "1e5", "nan", "", "9" * 50_000]
REAL = ["nan", "inf", "-inf", "1e400", "-1", "", "x"]

CASES = [
    *(("run", "--threads", value) for value in ["0", str(2**31), str(2**64), "500", "9" * 50_000]),
    *(("run", "--max-new-tokens", value) for value in ["0", *HUGE]),
    *(("run", "--top-k", value) for value in HUGE),
    *(("run", "--seed", value) for value in HUGE if value != str(2**31)),
    *(("run", "--temperature", value) for value in REAL),
    *(("run", "--top-p", value) for value in [*REAL, "0", "1.01", "1e-400"]),
    *(("run", "--repetition-penalty", value) for value in [*REAL, "0", "1e-40", "1e-320", "1e39"]),
    *(("build", "--batch", value) for value in ["0", *HUGE, f"1,2,{2**31}", "1,2", "1,2,3,4"]),
    *(("build", "--length", value) for value in ["0", *HUGE, f"1,2,{2**31}", "2,1,3"]),
    *(("build", "--past", value) for value in [*HUGE, f"0,1,{2**31}"]),
    *(("build", "--size", f"height={value}") for value in HUGE),
    *(("build", "--size", value) for value in ["", "=1", "height", "height=0"]),
    *(
        ("build", "--workspace", value)
        for value in ["0", "G", "1T", str(2**43), f"{2**40}G", "9" * 50_000, *HUGE[3:]]
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def exported(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("numbers") / "model"
    checkpoints.save(tiny_model, source)
    write_byte_tokenizer(source)
    return Path(export(source, source.parent / "out"))


def _end(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.mark.parametrize(
    ("command", "option", "value"), CASES, ids=lambda value: value[:20] or "empty"
)
def test_one_line_and_code_2(
    command: str,
    option: str,
    value: str,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = {
        "run": ["run", str(exported), "--prompt", "a"],
        "build": ["build", str(exported), "--bundle", str(tmp_path / "bundle")],
    }[command]
    code, out, err = _end([*arguments, f"{option}={value}"], capsys)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "unexpected" not in err
    assert option[2:].replace("-", "_") in err.replace("-", "_")
    assert len(err) < 5100, "a value is not repeated at any length"
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--seed", str(2**63 - 1), "--temperature", "1e-300"],
        ["--top-k", str(2**31 - 1), "--temperature", "1e30"],
        ["--top-p", "1e-320", "--temperature", "1", "--repetition-penalty", "1e-37"],
    ],
)
def test_the_largest_and_smallest_that_are_allowed(
    options: list[str], exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(exported), "--prompt", "a", "--max-new-tokens", "2", *options]
    code, out, err = _end(arguments, capsys)
    assert code == 0, err
    assert out.startswith("a")
    assert sys.stdout is not None
