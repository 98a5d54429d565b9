"""A measurement that fails becomes a row that says why: it must not cost the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import gpu
from bench.rows import Row
from mamba_export.errors import MambaExportError, first_line, named_first_line


def try_row(
    kind: str, sizes: dict[str, Any], implementation: str, measure: Callable[[], float]
) -> Row:
    """A row with the time, or the reason why there is none."""
    try:
        return Row.of(kind, sizes, implementation, measure())
    except Exception as error:  # mostly memory
        gpu.release_memory()
        return Row.of(kind, sizes, implementation, None, reason(error))


def reason(error: Exception) -> str:
    """The first line of an error, with its type where it is not ours."""
    return first_line(error) if isinstance(error, MambaExportError) else named_first_line(error)
