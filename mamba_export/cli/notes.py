"""Our own warnings as lines of a command."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from mamba_export.errors import MambaExportWarning


@contextlib.contextmanager
def noted() -> Iterator[list[str]]:
    """Our own warnings inside, gathered for lines of the command's; those of others go their way."""
    notes: list[str] = []

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, MambaExportWarning):
            notes.append(str(message))
        else:
            others(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", MambaExportWarning)
        others, warnings.showwarning = warnings.showwarning, show
        yield notes
