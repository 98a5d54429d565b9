"""The one list of runtimes. Each is a folder beside this file, whose ``backend.py`` holds its row, ``RUNTIME``.

The command line, ``run`` and ``verify`` learn from here what there is. A row imports its runtime when it is
asked to open something, so reading the list needs no runtime.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path

from mamba_export import given
from mamba_export.backends.backend import Absent, Backend, Runtime
from mamba_export.errors import MissingPackageError, SessionError
from mamba_export.requirements import named

FOLDERS = ("onnxruntime", "tensorrt")
"""In the order in which ``verify`` takes them; the first is the default of ``run``."""


@functools.cache
def runtimes() -> tuple[Runtime, ...]:
    """Every runtime's row."""
    modules = (importlib.import_module(f"{__package__}.{name}.backend") for name in FOLDERS)
    return tuple(module.RUNTIME for module in modules)


def runtime(option: str) -> Runtime:
    """The runtime that ``run --backend`` names. Raises SessionError for an option that is none."""
    return _named(option, {row.option: row for row in runtimes()})


def variants() -> dict[str, str]:
    """Every option of ``verify --backend``, with what it runs."""
    return {option: what for row in runtimes() for option, what in row.variants.items()}


def providers() -> tuple[str, ...]:
    """Every option of ``run --provider``, whatever the runtime."""
    return tuple(provider for row in runtimes() for provider in row.providers)


def present(
    options: Sequence[str] | None = None, folder: Path | None = None
) -> tuple[list[Backend], dict[str, str]]:
    """The backends that this machine has for an exported folder.

    Args:
        options: keys of ``variants``, in the order wanted; None for all of them.
        folder: without one, what needs a folder's engine is absent.

    Returns:
        Those that are here, and for the others their names with the reason.

    Raises:
        SessionError: an option is none of ``variants``.
    """
    rows = {option: row for row in runtimes() for option in row.variants}
    found: list[Backend] = []
    missing: dict[str, str] = {}
    for option in rows if options is None else options:
        row = _named(option, rows)
        try:
            with named():
                answer = row.find(option, folder or Path())
        except MissingPackageError as error:
            answer = Absent(row.title, str(error))
        if isinstance(answer, Backend):
            found.append(answer)
        else:
            missing[answer.name] = answer.reason
    return found, missing


def _named(option: str, rows: dict[str, Runtime]) -> Runtime:
    return rows[given.one_of(option, "backend", rows, SessionError)]
