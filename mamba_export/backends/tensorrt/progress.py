"""TensorRT's progress reports as calls of ours, and Ctrl-C and other signals while it builds.

The reports come from inside TensorRT's C++: an exception that left one, Python's KeyboardInterrupt included,
would end the process. So a signal sets a flag while an engine is built, and the next report cancels the build.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

Progress = Callable[[str, float], None]
"""Called with a line about what is done now, and how much of it is done, from 0 to 1."""


class Interrupt:
    """Whether a signal that ends the process came while ``watched``."""

    def __init__(self) -> None:
        self.number: int | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note Ctrl-C, SIGTERM and SIGHUP; what their handlers raise comes at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread receives signals
            return

        def note(number: int, _: object) -> None:
            self.number = number

        # A signal without a handler in Python ends the process at once, or is ignored.
        before = {
            number: handler
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if callable(handler := signal.getsignal(number))
        }
        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self.number is not None:
                signal.raise_signal(self.number)


def make_monitor(trt: Any, progress: Progress, interrupt: Interrupt) -> Any:
    """An ``IProgressMonitor`` that reports the outermost phases."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._outer: list[str] = []
            self._lock = threading.Lock()  # TensorRT reports from threads of its own

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = max(num_steps, 1)
                if parent_phase is None or parent_phase in self._outer[:1]:
                    self._outer.append(phase_name)
            self._report(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, (step + 1) / self._steps.get(phase_name, 1))
            return interrupt.number is None

        def phase_finish(self, phase_name: str) -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._outer.remove(phase_name)
            self._report(phase_name, 1.0)

        def _report(self, phase: str, share: float) -> None:
            with contextlib.suppress(Exception):  # see the module's first lines
                if phase in self._outer:
                    progress(phase, min(share, 1.0))

    return Monitor()
