"""The reader of untrusted files: what is read, and one line of the caller's class for all that is refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mamba_export.errors import CheckpointError, EngineError, MambaExportError
from mamba_export.untrusted import open_file, read_bytes, read_json, read_text

ROOT = Path(__file__).parents[1]

READERS: list[Callable[..., Any]] = [open_file, read_bytes, read_text, read_json]


def refused(read: Callable[..., Any], path: Path | str, message: str, **options: Any) -> None:
    """``read`` raises the class that is asked for, in one line that holds ``message``."""
    with pytest.raises(EngineError) as caught:
        read(path, error=EngineError, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b'\xef\xbb\xbf{"caf\xc3\xa9": [1, 2.5, -3e2, null, true]}\r\n')
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(tmp_path / "link") == path.read_bytes()
    assert read_text(path) == '{"café": [1, 2.5, -3e2, null, true]}\r\n'
    assert read_json(str(path)) == {"café": [1, 2.5, -300.0, None, True]}
    with open_file(path) as file:
        assert file.read(3) == b"\xef\xbb\xbf"


def test_the_class_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(MambaExportError, match="no such file") as caught:
        read_bytes(tmp_path / "absent")
    assert type(caught.value) is MambaExportError
    with pytest.raises(CheckpointError, match="no such file"):
        read_json(tmp_path / "absent", error=CheckpointError)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("absent")
    started = time.monotonic()
    refused(read, tmp_path / "absent", "absent: no such file")
    refused(read, tmp_path / "dangling", "dangling is a link to a file that is not there")
    refused(read, tmp_path, f"{tmp_path} is a folder, expected a file")
    refused(read, tmp_path / "fifo", "fifo is a FIFO, expected a file")
    refused(read, "/dev/zero", "/dev/zero is a device, expected a file")
    refused(read, tmp_path / "loop", "loop cannot be read (Too many levels of symbolic links)")
    refused(read, tmp_path / ("a" * 256), "cannot be read (File name too long)")
    refused(read, tmp_path / "fifo" / "inside", "inside cannot be read (Not a directory)")
    refused(read, "a\0b", r"'a\x00b' is no path")
    refused(read, "a\ud800b", r"'a\ud800b' is no path")
    assert time.monotonic() - started < 5, "the FIFO was waited for"


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json"))
    path.write_text("[1]")
    assert read_json(path) == [1]
    refused(read_json, path.with_suffix(".absent"), "no such file")


def test_permission_denied(tmp_path: Path) -> None:
    """As another user where the tests run as root, whom nothing is denied."""
    path = tmp_path / "closed" / "file"
    path.parent.mkdir()
    path.write_text("{}")
    tmp_path.chmod(0o755)
    script = """
import os
from mamba_export.errors import EngineError
from mamba_export.untrusted import read_json
for closed in ("closed/file", "closed"):
    os.chmod(closed, 0)
    if os.getuid() == 0:
        os.seteuid(65534)
    try:
        read_json("closed/file", error=EngineError)
    except EngineError as error:
        print(error)
    os.seteuid(os.getuid())
    os.chmod(closed, 0o700)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert result.stdout.splitlines() == ["closed/file cannot be read (Permission denied)"] * 2


def test_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_json(path, limit=5) == 12345
    refused(read_bytes, path, "file has more than 4 bytes, which is too large", limit=4)
    os.truncate(path, 1 << 40)  # a hole: nothing of it may be read
    refused(read_text, path, "file has more than 1073741824 bytes")


def test_files_that_state_no_size() -> None:
    assert read_text("/proc/self/comm").strip()
    refused(read_bytes, "/proc/self/maps", "more than 9 bytes", limit=9)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc\xff")
    refused(read_text, path, "file is not UTF-8 text (byte 3)")
    refused(read_json, path, "file is not valid JSON (not UTF-8 at byte 3)")


DAMAGED = {
    "empty": ("", "file is not valid JSON (Expecting value: line 1 column 1 (char 0))"),
    "cut": ('{"a": ', "file is not valid JSON (Expecting value"),
    "twice": ("{} {}", "file is not valid JSON (Extra data"),
    "control character": ('"a\tb"', "file is not valid JSON (Invalid control character"),
    "deep list": ("[" * 100_000 + "]" * 100_000, "file is nested too deeply"),
    "deep object": ('{"a":' * 200 + "1" + "}" * 200, "file is nested too deeply"),
    "NaN": ('{"a": {"b": [1, NaN]}}', "file: a.b[1] is nan, expected a finite number"),
    "Infinity": ('[{"x": -Infinity}]', "file: [0].x is -inf, expected a finite number"),
    "NaN alone": ("NaN", "file: the content is nan, expected a finite number"),
    "beyond float64": ('{"a": 1e999}', "file: a is inf, expected a finite number"),
    "10^400": (f'{{"a": -1{"0" * 400}}}', "file: a is an integer of 401 digits"),
    "a million digits": ("[" + "9" * 10**6 + "]", "file: [0] is an integer of 1000000 digits"),
    "long name": (f'{{"{"k" * 10**5}": NaN}}', f"file: {'k' * 60} is nan"),
}


@pytest.mark.parametrize(("text", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_json_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    refused(read_json, path, message)
    refused(read_json, path, ": fetch the file again", remedy="fetch the file again")


def test_numbers_of_files_in_use(tmp_path: Path) -> None:
    """transformers' "no limit", and the open end of Mamba-2's time_step_limit where the caller allows it."""
    path = tmp_path / "file"
    path.write_text('{"model_max_length": 1000000000000000019884624838656, "tiny": 1e-400}')
    assert read_json(path) == {"model_max_length": 1000000000000000019884624838656, "tiny": 0.0}
    path.write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_json(path, non_finite=True) == {"time_step_limit": [0.0, math.inf]}
    refused(read_json, path, "time_step_limit[1] is inf")


def test_a_depth_of_files_in_use(tmp_path: Path) -> None:
    path = tmp_path / "file"
    nested: Any = []
    for _ in range(60):
        nested = [nested]
    path.write_text(json.dumps(nested))
    assert read_json(path) == nested
