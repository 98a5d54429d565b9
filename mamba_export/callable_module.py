"""A package that is also a function: importing ``mamba_export.export`` binds that name to the package."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any


def make_callable(package: str, function: Callable[..., Any]) -> None:
    """Let a call of the imported ``package`` be a call of ``function``.

    Args:
        package: ``__name__`` of a package.
        function: of the same name as the package, which hides it once the package is imported.
    """

    class CallableModule(types.ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[package].__class__ = CallableModule
