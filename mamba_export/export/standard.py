"""Operators of PyTorch that its ONNX exporter has no translation for, in standard ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op


def sort_stable(
    self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    """aten::sort.stable: ``TopK`` of all, which leaves equal elements in their order.

    Args:
        self: any shape of at least one axis.
        stable: whatever it says, the order is stable.
        dim: the axis.
        descending: largest first.
    """
    axis = dim % len(self.shape)
    size = op.Shape(self, start=axis, end=axis + 1)
    return op.TopK(self, size, axis=axis, largest=int(descending), sorted=1)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.sort.stable: sort_stable,
}
