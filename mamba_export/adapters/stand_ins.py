"""Stand-ins for names that models import at the top and may never call: Mamba-2's parts, for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mamba_export.adapters.unsupported import refuse


def absent(name: str, reason: str) -> Callable[..., Any]:
    """A function that can be imported, and says by its name that it is not there when it is called."""

    def call(*_: Any, **__: Any) -> Any:
        refuse(name, reason)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"Not there: {reason}."
    return call


def absent_class(name: str, reason: str) -> type[nn.Module]:
    """A module class likewise: it serves ``isinstance`` and annotations, and cannot be made."""

    def init(self: Any, *_: Any, **__: Any) -> None:
        refuse(name, reason)

    return type(name, (nn.Module,), {"__init__": init, "__doc__": f"Not there: {reason}."})
