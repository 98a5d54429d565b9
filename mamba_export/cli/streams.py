"""The standard streams of a command: closed, full, or with a reader that left.

Python leaves a closed stream as None, so that the next file that is opened gets its number, and reports a full
disk under standard output only when the process ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mamba_export.errors import MambaExportError, first_line
from mamba_export.printing import printable, printable_lines

EXIT_READER_LEFT = 141
"""What a shell reports of a program whose reader left (``| head``): 128 + SIGPIPE."""


class OutputError(MambaExportError):
    """Standard output takes nothing."""


def prepare() -> None:
    """Make the standard streams safe to use; call it before anything is opened.

    Standard input and standard error that are closed become the null device. What the encoding of standard
    output lacks is escaped.

    Raises:
        OutputError: standard output is closed, so that a result would be lost.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _to_null(number)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        raise OutputError("standard output is closed: give it a file, a pipe or /dev/null")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def results() -> Iterator[None]:
    """Around code that prints results on standard output and does nothing else; they are handed on at its end.

    Raises:
        BrokenPipeError: the reader left.
        OutputError: standard output cannot be written, as on a full disk.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
        raise
    except OSError as error:  # Python's names no file
        silence()
        reason = error.strerror or first_line(error)
        raise OutputError(f"standard output cannot be written: {reason}") from error


def print_lines(text: str) -> None:
    """Print a result for people, which may name what others wrote, on standard output."""
    with results():
        print("\n".join(map(printable, text.split("\n"))))


def print_path(path: Path) -> None:
    """Print a path on standard output: for a program byte by byte, for a terminal as it can be shown."""
    if sys.stdout.isatty() or not hasattr(sys.stdout, "buffer"):
        print_lines(str(path))
        return
    with results():
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")


def say(line: str) -> None:
    """Print one line for people on standard error; one that takes nothing ends no work."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(line), file=sys.stderr, flush=True)


def say_lines(text: str) -> None:
    """As ``say``, of many lines."""
    with contextlib.suppress(OSError, ValueError):
        print(printable_lines(text), file=sys.stderr, end="", flush=True)


def silence() -> None:
    """Send standard output to the null device, so that the interpreter does not fail again at exit."""
    with contextlib.suppress(OSError, ValueError):  # standard output may be no file
        _to_null(sys.stdout.fileno())


def _to_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
