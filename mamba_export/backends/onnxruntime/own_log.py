"""ONNX Runtime's own log, which it writes on standard error whatever its caller says of a failure."""

from __future__ import annotations

import contextlib

_FATAL = 4  # of ONNX Runtime's severities


def leave_messages_to_errors() -> None:
    """For a command: the log stays off standard error; a failure is told by its error alone.

    An application that imports us keeps its own setting.
    """
    with contextlib.suppress(
        ImportError
    ):  # absent: another runtime may serve, or a line says so later
        import onnxruntime

        onnxruntime.set_default_logger_severity(_FATAL)
