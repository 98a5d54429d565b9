"""The command line, ``mamba-export``: a file a command, ``app`` ties them together.

Results go to standard output, progress and errors to standard error. Exit codes: 0 success, 1 a
verification that failed, 2 bad input (one line, no traceback), 130 interrupted (143, 129: SIGTERM, SIGHUP),
141 a reader that left (``| head``). Commands import what they need when they run, so that help and shell
completion are quick.
"""

from mamba_export.cli.app import main, run_app
from mamba_export.cli.outcome import exit_with

__all__ = ["exit_with", "main", "run_app"]
