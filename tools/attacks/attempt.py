"""One attempt: what is tried, on what, and what a right answer to it would be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Outcome:
    """What came of an attempt.

    Args:
        code: exit code of a command; 0 of a call that returned.
        error: a call's exception, or one that a command let pass; None where there is none.
        value: what a call returned.
        stdout, stderr: what the process wrote, its libraries too.
        seconds: of this process's CPU time.
        peak_mib: memory that it took at most, above what it had.
        events: what it did that needs asking: sockets, foreign files and libraries (``watch.Audit``).
        changed: paths that appeared, went or changed, below the attempt's folder (``watch.differences``).
    """

    code: int | None
    error: BaseException | None
    value: Any
    stdout: str
    stderr: str
    seconds: float
    peak_mib: float
    events: list[str]
    changed: list[Path]


@dataclass
class Attempt:
    """What is tried.

    Args:
        what: the damage or the value, in words, for the report.
        arguments: of the command line; or ``call``, of the Python API.
        call: a call of the Python API.
        writes: files and folders that may change where it succeeds.
        leftovers: files that may change where it fails, too.
        refuse: success would be wrong.
        fails: nothing but exit code 1 is right: a verification that must see the damage, or code 2.
        around: what holds while it runs, such as a limit of the file size.
        check: after the fact: what is wrong with the outcome, in words.
        may_raise: what a call may raise beside our errors, such as a torch operator's ValueError.
        any_code: the exit code is what the shell or a signal makes it.
    """

    what: str
    arguments: list[str] | None = None
    call: Callable[[], Any] | None = None
    writes: tuple[Path, ...] = ()
    leftovers: tuple[Path, ...] = ()
    refuse: bool = False
    fails: bool = False
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    check: Callable[[Outcome], Iterable[str]] = field(default=lambda _: ())
    may_raise: tuple[type[Exception], ...] = ()
    any_code: bool = False
