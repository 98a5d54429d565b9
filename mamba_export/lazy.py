"""Names of a package that are imported on first use, so that importing the package costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mamba_export.requirements import named


def on_first_use(
    package: str, homes: Mapping[str, str], *, also: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``, which lists the names of the API alone.

    Args:
        package: its ``__name__``.
        homes: the module of each name, full.
        also: names that the package has itself, to be listed too.

    Returns:
        What gives a name, raising MissingPackageError where a package that it needs is not installed, and
        what lists them.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with named():
            return getattr(importlib.import_module(homes[name]), name)

    def names() -> list[str]:
        return sorted([*homes, *also])

    return get, names
