"""A signal ends a command in good order: what it began is taken back, and what stood there stands."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

from mamba_export.files import begun, end_left
from mamba_export.interrupts import deferred

_FROM_OUTSIDE = (signal.SIGTERM, signal.SIGHUP)
_SOON = 0.02  # seconds: when what may not raise may have ended
_LOADING = {
    getattr(ExtensionFileLoader, name).__code__ for name in ("create_module", "exec_module")
}


@contextlib.contextmanager
def ending_well() -> Iterator[None]:
    """In the block the first SIGTERM or SIGHUP raises SystemExit with the shell's code, 128 and its number.

    Each Ctrl-C raises KeyboardInterrupt, as it does without us: a user may need a second one.

    A signal that the process was started to ignore stays ignored (``nohup``), and so does what an
    application that calls us in a thread of its own has set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {
        number: signal.SIG_DFL
        for number in _FROM_OUTSIDE
        if signal.getsignal(number) is signal.SIG_DFL
    }
    outside = [*before]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.default_int_handler
    raised: dict[int, BaseException] = {}  # by the signal's number
    report = sys.unraisablehook
    outer = begun()

    def end(number: int, frame: FrameType | None) -> None:
        if _loads_an_extension(frame):
            _send_soon(number)
            return
        if number == signal.SIGINT:
            raised[number] = KeyboardInterrupt()
        else:
            # A terminal that closes sends several: the first one is being answered.
            for one in outside:
                signal.signal(one, signal.SIG_IGN)
            raised[number] = SystemExit(128 + number)
        raise raised[number]

    def again(swallowed: sys.UnraisableHookArgs) -> None:
        """Python called something that may not raise, such as a weak reference's callback: ask once more."""
        for number, stop in raised.items():
            if swallowed.exc_value is stop:
                signal.signal(number, end)
                _send_soon(number)
                return
        report(swallowed)

    for number in before:
        signal.signal(number, end)
    sys.unraisablehook = again
    try:
        yield
    except GeneratorExit:
        # A signal came in the call of the end of the block, whose frames are freed only now: at once, or, of a
        # cycle, when garbage is collected. What was begun or set since stays.
        outer = begun()
        in_main = threading.current_thread() is threading.main_thread()
        ours = (end, signal.SIG_IGN)
        before = {n: was for n, was in before.items() if in_main and signal.getsignal(n) in ours}
        raise
    finally:
        with deferred():
            end_left(but=outer)
            if sys.unraisablehook is again:
                sys.unraisablehook = report
            # The exception's frames lead here: without this they would live until garbage is collected, and
            # with them a block whose end the signal met before it had begun.
            raised.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _send_soon(number: int) -> None:
    threading.Timer(_SOON, os.kill, (os.getpid(), number)).start()


def _loads_an_extension(frame: FrameType | None) -> bool:
    """Whether a frame was called by a library that is being imported, such as for the enums of Triton's.

    C++ that starts up there ends the process (SIGABRT) where what it calls raises.
    """
    while frame is not None:
        if frame.f_code in _LOADING:
            return True
        frame = frame.f_back
    return False
