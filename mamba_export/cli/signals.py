"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it began is taken back, and what stood there stands."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_SOON = 0.02  # seconds: when the callback has ended


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
    raised: dict[int, SystemExit] = {}  # by the signal's number
    report = sys.unraisablehook

    def end(number: int, _: FrameType | None) -> None:
        for one in ours:  # a terminal that closes sends several: the first one is being answered
            signal.signal(one, signal.SIG_IGN)
        raised[number] = SystemExit(128 + number)
        raise raised[number]

    def again(swallowed: sys.UnraisableHookArgs) -> None:
        """Python called something that may not raise, such as a weak reference's callback: ask once more."""
        for number, stop in raised.items():
            if swallowed.exc_value is stop:
                signal.signal(number, end)
                threading.Timer(_SOON, os.kill, (os.getpid(), number)).start()
                return
        report(swallowed)

    for number in ours:
        signal.signal(number, end)
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = report
        # The exception's frames lead here: without this they would live until garbage is collected, and with
        # them a block whose end the signal met before it had begun.
        raised.clear()
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
