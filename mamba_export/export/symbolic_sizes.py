"""``shape.numel()`` of dynamic sizes, which PyTorch would fix to numbers while it traces."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class SymbolicSize(tuple):
    """A ``torch.Size`` that holds symbolic sizes. U-Mamba and SegMamba call ``x.shape[2:].numel()``.

    ``torch.Size`` cannot be a base class, and its own ``numel`` takes each size as a plain number.
    """

    def numel(self) -> Any:
        """Product of the sizes, symbolic itself."""
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return SymbolicSize(found) if isinstance(index, slice) else found


class SymbolicSizes(TorchFunctionMode):
    """Block in which ``x.shape`` and ``x.size()`` of a dynamic shape are ``SymbolicSize``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if type(found) is torch.Size and any(isinstance(size, torch.SymInt) for size in found):
            return SymbolicSize(found)
        return found
