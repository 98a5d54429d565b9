"""Signals that end a process, held back for a moment: around what must not be left half done.

Python calls a signal's handler between any two steps of any code, and what it raises comes out there: in a
``finally`` too, and in the standard library's own (``shutil.rmtree`` loses it, having closed a file twice).
Blocking the signal in this thread does not help, since it is then delivered to another of the process.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """Whether a signal came, and the number of the first one."""

    def __init__(self) -> None:
        self.number: int | None = None


@contextlib.contextmanager
def deferred() -> Iterator[Interrupt]:
    """Note Ctrl-C, SIGTERM and SIGHUP in the block; what their handlers raise comes at its end.

    Only signals that Python handles: one that is the system's ends the process at once, or is ignored. Other
    threads than the main one receive none.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: handler for number in ENDING if callable(handler := signal.getsignal(number))}
    over = False

    def note(number: int, frame: FrameType | None) -> None:
        if over:  # and the handler of before has not got its place back yet
            before[signal.Signals(number)](number, frame)
        elif interrupt.number is None:
            interrupt.number = number

    try:
        for number in before:
            signal.signal(number, note)
        yield interrupt
    finally:
        over = True
        for number, handler in before.items():
            signal.signal(number, handler)
        if interrupt.number is not None:
            signal.raise_signal(interrupt.number)
