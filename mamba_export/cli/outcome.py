"""How the outcome of a command becomes an exit code and one line on standard error.

0 is success, 1 a verification that failed, 2 bad input or a fault, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP,
141 a reader that left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from mamba_export import requirements
from mamba_export.cli import streams
from mamba_export.cli.signals import ending_well
from mamba_export.errors import MambaExportError, named_first_line

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended

# A path has 4,095 bytes at most and is told whole; an argument has 128 KiB.
_LONGEST_LINE = 5000

TRACEBACK_VARIABLE = "MAMBA_EXPORT_TRACEBACK"
"""Environment variable: set to 1, an error's traceback precedes its line."""


def exit_with(work: Callable[[], Any]) -> NoReturn:
    """Run a command and end the process.

    Args:
        work: may return an exit code; anything else counts as 0.
    """
    code = _code(work)
    # ``python -m`` ends itself by SIGINT, whatever the exit code, where Ctrl-C came while source text was run,
    # as dataclasses and named tuples do (CPython's run_eval_code_obj). The next text that is run clears that.
    exec("")
    sys.exit(code)


def _code(work: Callable[[], Any]) -> int:
    code = 0
    try:
        streams.prepare()
        try:
            with requirements.named(), ending_well():
                code = _number(work())
        except SystemExit as stop:
            code = _number(stop.code)
        with streams.results():  # a command may have printed without it
            pass
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        streams.silence()
        return code or streams.EXIT_READER_LEFT
    except BaseException as error:  # Rust's panics and GeneratorExit are no Exception
        return _fail(error)
    return code


def _number(result: Any) -> int:
    return result if isinstance(result, int) else 0


def _fail(error: BaseException) -> int:
    if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
        streams.say_lines("".join(traceback.format_exception(error)))
    with contextlib.suppress(BrokenPipeError, streams.OutputError), streams.results():
        pass  # what was printed until then
    streams.say(f"error: {_shortened(_line(error))}")
    return EXIT_BAD_INPUT


def _shortened(line: str) -> str:
    """A line that may hold a value of any length: the middle, where that stands, is left out."""
    if len(line) <= _LONGEST_LINE:
        return line
    half = _LONGEST_LINE // 2
    return f"{line[:half]} [{len(line) - 2 * half} characters] {line[-half:]}"


def _line(error: BaseException) -> str:
    if isinstance(error, MambaExportError):
        return str(error)
    see = f"{TRACEBACK_VARIABLE}=1 shows where"
    if isinstance(error, MemoryError):
        return f"out of memory ({named_first_line(error)}; {see})"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        names = [name for name in (error.filename, error.filename2) if name is not None]
        return f"{' and '.join(map(_shown, names))}: {error.strerror} ({see})"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # what writes files names them
        return f"standard output cannot be written: {error.strerror}"
    return f"unexpected {named_first_line(error)} ({see})"


def _shown(name: Any) -> str:
    return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else str(name)
