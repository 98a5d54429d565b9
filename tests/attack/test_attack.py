"""A seeded thousand attempts, and that the oracle which judges them sees what it is there for."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attacks import campaign, watch
from attacks.attempt import Attempt, Outcome
from attacks.kinds import KINDS, kind_of
from attacks.oracle import SECRET, judge
from attacks.worker import attempt_of
from mamba_export.errors import SessionError

SEED, COUNT = 9, 1000


@pytest.mark.slow
def test_a_seeded_thousand_gets_right_answers() -> None:
    results = campaign.run(range(COUNT), SEED)
    assert sorted(result.number for result in results) == list(range(COUNT))
    assert {result.kind for result in results} == {kind.name for kind in KINDS}
    wrong = [
        f"{one.number} {one.kind}: {one.what}: {reason}"
        for one in results
        for reason in one.reasons
    ]
    assert not wrong, f"again: python tools/attack.py --seed {SEED} --only NUMBER"


COMMAND = Attempt("", ["run", "model"])
REFUSED = Outcome(2, None, None, "", "error: model: no such folder\n", 0.1, 1.0, [], [])


def test_a_right_answer_is_right() -> None:
    assert judge(COMMAND, REFUSED) == []
    assert (
        judge(
            Attempt("", call=print),
            dataclasses.replace(REFUSED, code=None, error=SessionError("no")),
        )
        == []
    )
    help_alone = dataclasses.replace(REFUSED, stdout="Usage: mamba-export run\n", stderr="")
    assert judge(COMMAND, help_alone) == []  # a command without arguments


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"stderr": "Traceback (most recent call last):\nKeyError: 'x'\n", "code": 1},
            "traceback: KeyError",
        ),
        ({"error": KeyError("x")}, "traceback: KeyError"),
        ({"stderr": "error: KeyError (MAMBA_EXPORT_TRACEBACK=1 shows where)\n"}, "net"),
        ({"stderr": "error: one\nerror: two\n"}, "2 lines"),
        ({"stderr": "a warning\n"}, "no message"),
        ({"stderr": ""}, "without a message"),
        ({"stderr": "error: \x1b[2J is no file\n"}, "control character"),
        ({"stderr": "error: \u202e is no file\n"}, "control character"),
        ({"code": 1}, "no failed check"),
        ({"code": 3}, "exit code 3"),
        ({"code": -6}, "exit code -6"),
        ({"seconds": 100.0}, "takes 100 s"),
        ({"peak_mib": 7000.0}, "takes 7000 MiB"),
        ({"stdout": SECRET}, "from outside"),
        ({"events": ["socket: socket.connect"]}, "socket"),
        ({"changed": [Path("novel.txt")]}, "leaves or loses"),
    ],
)
def test_the_oracle_sees_a_wrong_answer(changes: dict[str, object], expected: str) -> None:
    found = judge(COMMAND, dataclasses.replace(REFUSED, **changes))  # type: ignore[arg-type]
    assert any(expected in reason for reason in found), found


def test_the_oracle_sees_what_was_accepted_and_what_was_not_asked_for() -> None:
    good = dataclasses.replace(REFUSED, code=0, stderr="")
    assert judge(COMMAND, good) == []
    assert judge(dataclasses.replace(COMMAND, refuse=True), good) == ["accepted"]
    assert judge(dataclasses.replace(COMMAND, fails=True), good) == ["accepted"]
    asked = dataclasses.replace(COMMAND, writes=(Path("out"),))
    assert judge(asked, dataclasses.replace(good, changed=[Path("out/model.onnx")])) == []
    assert judge(asked, dataclasses.replace(good, changed=[Path("model")])) != []
    assert judge(asked, dataclasses.replace(REFUSED, changed=[Path("out/model.onnx")])) != []
    raw = dataclasses.replace(REFUSED, code=None, error=TypeError("x"))
    assert judge(Attempt("", call=print), raw) == ["raw error: TypeError: x"]


def test_the_audit_sees_files_outside_sockets_programs_and_libraries(tmp_path: Path) -> None:
    """In a process of its own: an audit hook stays for good."""
    script = (
        "import ctypes, os, pathlib, socket, subprocess, sys\n"
        "from attacks.watch import Audit\n"
        "inside, outside = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "with Audit(inside / 'tmp').watching(inside) as events:\n"
        "    (inside / 'a').write_text('x'); (inside / 'a').read_text(); (inside / 'a').unlink()\n"
        "    ctypes.CDLL('libc.so.6')\n"
        "    assert not events, events\n"
        "    (outside / 'b').write_text('x'); (outside / 'b').read_text(); (outside / 'b').unlink()\n"
        "    subprocess.run(['true'])\n"
        "    try: socket.create_connection(('127.0.0.1', 1), 0.1)\n"
        "    except OSError: pass\n"
        "    try: ctypes.CDLL(str(inside / 'planted.so'))\n"
        "    except OSError: pass\n"
        "print('\\n'.join(events))\n"
    )
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(inside), str(outside)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    for one in (
        "writes outside",
        "reads outside",
        "os.remove outside",
        "program",
        "socket",
        "foreign code",
    ):
        assert one in done.stdout, done.stdout


def test_a_snapshot_sees_every_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    (tmp_path / "link").symlink_to("file")
    before = watch.snapshot(tmp_path)
    assert watch.differences(before, watch.snapshot(tmp_path)) == []
    (tmp_path / "file").write_text("b")
    (tmp_path / "link").unlink()
    (tmp_path / "new").mkdir(mode=0o700)
    changed = watch.differences(before, watch.snapshot(tmp_path))
    assert [path.name for path in changed] == ["file", "link", "new"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Material of which only the names matter."""
    from attacks import material

    for name in (material.CHECKPOINT, material.EXPORTED, material.ENGINE):
        folder = tmp_path / "material" / name
        folder.mkdir(parents=True)
        for file in (
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "mamba_export.json",
            "engine.json",
        ):
            (folder / file).write_text('{"a": 1, "b": [2, {"c": "x"}]}')
        for file in ("model.onnx.data", "model.safetensors"):
            (folder / file).write_bytes(bytes(range(100)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_attempt_is_its_seed_and_number(root: Path) -> None:
    """Of the kinds that need no real model: the same twice, and others under another seed."""
    easy = {
        "config.json: bytes and values",
        "mamba_export.json: bytes and values",
        "options of every command",
    }
    numbers = [n for n in range(200) if kind_of(5, n).name in easy]
    assert len(numbers) > 20

    def made(seed: int, where: Path) -> list[str]:
        found = []
        for number in numbers:
            if kind_of(seed, number).name not in easy:
                continue
            kind, attempt, folder = attempt_of(seed, number, root)
            found.append(f"{kind} {attempt.what} {attempt.arguments}")
            folder.rename(where / folder.name)
        return found

    for name in ("first", "second", "other"):
        (root / name).mkdir()
    first = made(5, root / "first")
    assert first == made(5, root / "second")
    assert len(set(first) & set(made(6, root / "other"))) < len(first) / 2
