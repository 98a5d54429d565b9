"""TensorRT's progress reports as calls of ours, and Ctrl-C and other signals while it builds.

The reports come from inside TensorRT's C++: an exception that left one, Python's KeyboardInterrupt included,
would end the process. So signals are deferred while an engine is built, and the next report cancels the build.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from mamba_export.interrupts import Interrupt

Progress = Callable[[str, float], None]
"""Called with a line about what is done now, and how much of it is done, from 0 to 1."""


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
