"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it began is taken back, and what stood there stands."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ending_well() -> Iterator[None]:
    """In the block the first of these signals raises SystemExit with the shell's code, 128 and its number.

    A signal that the process was started to ignore stays ignored (``nohup``), and so does what an
    application that calls us in a thread of its own has set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _: FrameType | None) -> None:
        for one in ours:  # a terminal that closes sends several: the first one is being answered
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
