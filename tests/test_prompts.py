"""Prompts of ``mamba-export run``: arguments, files and standard input, and those that are none."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mamba_export.cli.prompts import gather
from mamba_export.cli.run import command
from mamba_export.errors import SessionError


@pytest.fixture
def given_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def test_prompts_in_order_and_exact(tmp_path: Path, given_input: Callable[[bytes], None]) -> None:
    file, other = tmp_path / "prompt.txt", tmp_path / "[bold] \x1b.txt"
    file.write_bytes("  line\r\nΩ\n\n".encode())
    other.write_bytes("\ufeffmark\0 ".encode())
    given_input(b"input\n")
    assert gather(["one", "-", "two"], [file, other]) == [
        "one", "input\n", "two", "  line\r\nΩ\n\n", "mark\0 ",
    ]  # fmt: skip
    given_input(b"again")
    assert gather([], [Path("-")]) == ["again"]


def test_long_ones(tmp_path: Path, given_input: Callable[[bytes], None]) -> None:
    text = "0123456789abcdé\n" * (1 << 16)
    file = tmp_path / "long.txt"
    file.write_text(text, newline="")
    given_input(text.encode())
    assert gather(["-"], [file]) == [text, text]


def test_what_is_no_prompt(
    tmp_path: Path, given_input: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, binary, fifo = tmp_path / "empty", tmp_path / "binary", tmp_path / "fifo"
    empty.touch()
    binary.write_bytes(b"abc\xff\xfe")
    os.mkfifo(fifo)
    for texts, files, word in [
        ([], [], "--prompt-file FILE"),
        ([""], [], "the prompt is empty"),
        (["a", ""], [], "the prompt is empty"),
        ([os.fsdecode(b"abc\xff")], [], "--prompt is not UTF-8"),
        ([], [empty], "empty is empty"),
        ([], [binary], "binary is not UTF-8 text (byte 3)"),
        ([], [fifo], "fifo is a FIFO"),
        ([], [tmp_path], "is a folder"),
        ([], [tmp_path / "none"], "none: no such file"),
        ([], [tmp_path / ("n" * 300)], "cannot be read (File name too long)"),
        (["-", "-"], [], "name it once"),
        (["-"], [Path("-")], "name it once"),
    ]:  # fmt: skip
        given_input(b"x")
        with pytest.raises(SessionError) as error:
            gather(texts, files)
        assert word in str(error.value)
        assert "\n" not in str(error.value)
    for content, word in [(b"", "standard input is empty"), (b"\xff", "input is not UTF-8")]:
        given_input(content)
        with pytest.raises(SessionError, match=word):
            gather(["-"], [])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SessionError, match="standard input is empty"):
        gather(["-"], [])


def test_a_folder_as_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)

    class Folder(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return os.read(descriptor, 1)

    class Stream:
        buffer = Folder()

    monkeypatch.setattr(sys, "stdin", Stream())
    with pytest.raises(SessionError, match=r"standard input cannot be read \(Is a directory\)"):
        gather(["-"], [])
    os.close(descriptor)


def test_the_command_reads_prompts_before_the_folder(tmp_path: Path) -> None:
    """A prompt that is none is told before a large model is loaded."""
    with pytest.raises(SessionError, match="no prompt was given"):
        command(tmp_path / "none")
