"""Errors as one line."""

from __future__ import annotations

import pytest

from mamba_export.errors import (
    MambaExportError,
    MissingPackageError,
    UnknownOptionError,
    first_line,
    named_first_line,
)


@pytest.mark.parametrize(
    ("error", "line", "named"),
    [
        (ValueError("one"), "one", "ValueError: one"),
        (ValueError("\n  first \nsecond"), "first", "ValueError: first"),
        (ValueError(""), "ValueError", "ValueError"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt"),
        (RuntimeError(" \n\n "), "RuntimeError", "RuntimeError"),
        (ValueError("x" * 10**6), "x" * 500 + "...", "ValueError: " + "x" * 500 + "..."),
    ],
    ids=["plain", "many lines", "empty", "no arguments", "blank", "a whole file"],
)
def test_first_line(error: BaseException, line: str, named: str) -> None:
    assert first_line(error) == line
    assert named_first_line(error) == named


def test_first_line_after_advice() -> None:
    error = ValueError("do not heed this. reason: the file is short\nmore")
    assert first_line(error, after="reason:") == "the file is short"
    assert first_line(error, after="no such text") == first_line(error)


@pytest.mark.parametrize("kind", [MambaExportError, MissingPackageError, UnknownOptionError])
def test_ends_of_lines_in_a_name_are_spelt_out(kind: type[MambaExportError]) -> None:
    assert str(kind("a\nerror: b\r: no such folder")) == "a\\nerror: b\\r: no such folder"
