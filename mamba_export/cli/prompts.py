"""The prompts of ``mamba-export run``: from options, files and standard input.

An argument holds 128 KiB at most (Linux's MAX_ARG_STRLEN); a file and standard input hold what memory holds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mamba_export.errors import SessionError
from mamba_export.untrusted import BYTES_LIMIT, read_text

STANDARD_INPUT = "-"


def gather(texts: Sequence[str], files: Sequence[Path]) -> list[str]:
    """The prompts of a request, those of ``--prompt`` first.

    Args:
        texts: of ``--prompt``; "-" stands for standard input, whole.
        files: of ``--prompt-file``; each holds one prompt in UTF-8 (a byte order mark is left out), exactly: a
            line break at its end is part of it, as in any text. "-" stands for standard input too.

    Returns:
        At least one, none empty.

    Raises:
        SessionError: there is none, one is empty or not UTF-8, a file cannot be read, or standard input is
            named twice.
    """
    sources = [*texts, *map(str, files)]
    if not sources:
        raise SessionError(
            "no prompt was given: add --prompt TEXT, --prompt-file FILE, or --prompt - for standard input"
        )
    if sources.count(STANDARD_INPUT) > 1:
        raise SessionError("standard input (-) holds one prompt: name it once")
    prompts = [_read_input() if text == STANDARD_INPUT else _argument(text) for text in texts]
    return prompts + [_read_file(file) for file in files]


def _argument(text: str) -> str:
    if not text:
        raise SessionError("the prompt is empty: give at least one character (--prompt TEXT)")
    try:
        text.encode()
    except UnicodeEncodeError:  # Python keeps an argument's other bytes as lone surrogates
        raise SessionError("the prompt of --prompt is not UTF-8 text") from None
    return text


def _read_file(path: Path) -> str:
    if str(path) == STANDARD_INPUT:
        return _read_input()
    text = read_text(path.expanduser(), error=SessionError)
    if not text:
        raise SessionError(f"{path} is empty: a prompt has at least one character")
    return text


def _read_input() -> str:
    try:
        # Python has no stream where it is closed.
        content = b"" if sys.stdin is None else sys.stdin.buffer.read(BYTES_LIMIT + 1)
    except OSError as error:
        raise SessionError(f"standard input cannot be read ({error.strerror})") from error
    if len(content) > BYTES_LIMIT:
        raise SessionError(f"standard input has more than {BYTES_LIMIT} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SessionError(f"standard input is not UTF-8 text (byte {error.start})") from error
    if not text:
        raise SessionError("standard input is empty: a prompt has at least one character")
    return text
