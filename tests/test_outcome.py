"""How a command ends: whatever it raises is one line and code 2, and standard streams may be closed or full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mamba_export.cli.outcome import TRACEBACK_VARIABLE, exit_with
from mamba_export.errors import MambaExportError
from mamba_export.libraries import CUSTOM_OPS

ROOT = Path(__file__).parent.parent


class PanicError(BaseException):
    """As the panics of Rust's libraries, which are no Exception."""


def _raise(error: BaseException) -> None:
    raise error


def _recurse() -> None:
    _recurse()


def _end(work: object, capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stop:
        exit_with(work)  # type: ignore[arg-type]
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.mark.parametrize(
    ("work", "word"),
    [
        (lambda: _raise(MambaExportError("what to do")), "error: what to do\n"),
        (lambda: _raise(ValueError("odd\nsecond line")), "unexpected ValueError: odd ("),
        (lambda: _raise(KeyError()), "unexpected KeyError ("),
        (lambda: _raise(PanicError("stride")), "unexpected PanicError: stride ("),
        (lambda: _raise(MemoryError()), "out of memory ("),
        (_recurse, "unexpected RecursionError: maximum recursion depth"),
        (
            lambda: Path("/nowhere/file").read_text(),
            "error: /nowhere/file: No such file or directory (",
        ),
        (lambda: Path("/nowhere/a").rename("/nowhere/b"), "/nowhere/a and /nowhere/b: No such"),
        (lambda: _raise(OSError("no number")), "unexpected OSError: no number ("),
        (lambda: _raise(EOFError()), "unexpected EOFError ("),
        (lambda: _raise(MambaExportError("\x1b[31m\nx")), r"error: \x1b[31m\nx"),
        (lambda: _raise(GeneratorExit()), "unexpected GeneratorExit ("),
    ],
)
def test_every_error_is_one_line_and_code_2(
    work: object, word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    code, out, err = _end(work, capsys)
    assert (code, out) == (2, "")
    assert word in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert ("shows where" in err) == ("to do" not in err and "\\x1b" not in err)


def test_the_traceback_can_be_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    code, _, err = _end(lambda: _raise(ValueError("odd \x1b[2J")), capsys)
    assert code == 2
    assert err.startswith("Traceback (most recent call last):\n")
    assert "in _raise" in err
    assert "\x1b" not in err
    assert err.splitlines()[-1].startswith(r"error: unexpected ValueError: odd \x1b[2J (")


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda: None, 0),
        (lambda: 1, 1),
        (lambda: sys.exit(3), 3),
        (lambda: sys.exit(), 0),
        (lambda: _raise(KeyboardInterrupt()), 130),
    ],
)
def test_codes_that_stay(work: object, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert _end(work, capsys) == (code, "", "")


# --- A command's own errors, through typer -----------------------------------------------------------------

PLANTED = """\
import sys, typer
from mamba_export.cli import run_app
from mamba_export.cli.streams import print_lines

app = typer.Typer(add_completion=False)

@app.command()
def main(what: str = "nothing", number: int = 0) -> None:
    if what == "eof":
        raise EOFError("cut short")
    if what == "panic":
        raise type("PanicException", (BaseException,), {})("called Option::unwrap()")
    if what == "lines":
        for _ in range(100_000):
            print_lines("line")
    if what == "interrupt":
        raise KeyboardInterrupt
    print_lines("the result")
    if what == "fails":
        raise typer.Exit(1)

run_app(app)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "planted.py"
    path.write_text(textwrap.dedent(PLANTED))
    return path


def shell(line: str, script: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which $RUN is the script."""
    return subprocess.run(
        ["bash", "-c", f'RUN="{sys.executable} {script}"; {line}', "bash", *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("$RUN", 0, "the result\n", ""),
        ("$RUN --what fails", 1, "the result\n", ""),
        ("$RUN --what eof", 2, "", "unexpected EOFError: cut short ("),
        ("$RUN --what panic", 2, "", "unexpected PanicException: called Option::unwrap() ("),
        ("$RUN --what interrupt", 130, "", ""),
        ("$RUN --number 1.5", 2, "", "error: Invalid value for '--number'"),
        ("$RUN --nope $'\\e[31m[/red]'", 2, "", "error: No such option: --nope"),
        ("$RUN $'\\e[31m[/red]'", 2, "", r"\x1b[31m[/red]"),
        # Closed and full streams.
        ("$RUN >&-", 2, "", "error: standard output is closed"),
        ("unset PYTHONUNBUFFERED; $RUN >/dev/full", 2, "", "error: standard output cannot be written: "),
        ("PYTHONUNBUFFERED=1 $RUN >/dev/full", 2, "", "error: standard output cannot be written: "),
        ("$RUN --help >/dev/full", 2, "", "error: standard output cannot be written: No space left"),
        ("$RUN --what lines >/dev/full", 2, "", "standard output cannot be written: No space left"),
        ("$RUN --what fails >/dev/full", 2, "", "standard output cannot be written: No space left"),
        ("$RUN 2>&-", 0, "the result\n", ""),
        ("$RUN --what eof 2>&-", 2, "", ""),
        ("$RUN --what eof 2>/dev/full", 2, "", ""),
        ("$RUN >&- 2>&-", 2, "", ""),
        ("$RUN <&-", 0, "the result\n", ""),
        # A reader that leaves.
        ("$RUN --what lines | head -1; exit ${PIPESTATUS[0]}", 141, "line\n", ""),
        ("(sleep 1; $RUN --help) | true; exit ${PIPESTATUS[0]}", 141, "", ""),
        ("$RUN --what eof 2>&1 >&- | true; exit ${PIPESTATUS[0]}", 2, "", ""),
    ],
)  # fmt: skip
def test_streams(line: str, code: int, out: str, err: str, script: Path) -> None:
    result = shell(line, script)
    assert result.returncode == code, result.stderr
    assert result.stdout == out
    assert err in result.stderr
    assert result.stderr.count("\n") == (1 if err else 0), result.stderr


def test_a_closed_stream_does_not_become_a_file(script: Path, tmp_path: Path) -> None:
    """Else what is printed lands in the next file that is opened: it gets the number that is free."""
    path = tmp_path / "opens.py"
    path.write_text(
        "from mamba_export.cli import exit_with\n"
        "def work():\n"
        "    with open('model', 'w') as file:\n"
        "        assert file.fileno() > 2\n"
        "exit_with(work)\n"
    )
    result = shell(f"cd {tmp_path}; $RUN <&- 2>&-", path)
    assert result.returncode == 0


def test_ctrl_c_through_the_command(script: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from mamba_export.cli import exit_with\nimport time\n"
         "exit_with(lambda: (print('ready', flush=True), time.sleep(60)))"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


@pytest.mark.parametrize(
    "line",
    [
        "exec('os.kill(os.getpid(), signal.SIGINT)')",  # as dataclasses make their methods
        "run_app(app)",
    ],
)
def test_ctrl_c_is_130_in_source_text_too(line: str, tmp_path: Path) -> None:
    """CPython would end ``python -m`` by the signal itself."""
    (tmp_path / "program.py").write_text(
        "import os, signal, typer\n"
        "from mamba_export.cli import exit_with, run_app\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def main():\n"
        "    exec('os.kill(os.getpid(), signal.SIGINT)')\n"
        f"exit_with(lambda: {line})\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "program"],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")


def test_a_path_is_printed_byte_by_byte(tmp_path: Path) -> None:
    """A shell's $(mamba-export library-path) must name the file, though its folder is not UTF-8."""
    folder = tmp_path / os.fsdecode(b"odd\xff[bold]\x1b[31m")
    folder.mkdir()
    (folder / "lib.so").touch()
    library = os.fsencode(folder / "lib.so")
    result = subprocess.run(
        [sys.executable, "-m", "mamba_export", "library-path"],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environb, CUSTOM_OPS.variable.encode(): library},
    )
    assert (result.returncode, result.stdout) == (0, library + b"\n"), result.stderr
