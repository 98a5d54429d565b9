"""Translations of PyTorch's own operators that its exporter lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.onnx_opset import opset18

op: Any = opset18  # of onnxscript's own types few values here are


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By overload, as ``torch.onnx.export`` takes them."""
    aten = torch.ops.aten
    return {
        aten.sort.stable: _stable_sort,
        aten.exponential.default: _exponential,
    }


def _stable_sort(
    self: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    """``torch.sort(..., stable=True)`` and ``argsort`` (MambaIRv2's order of pixels).

    Of equal values TopK gives that of the lower index first, in both directions: it is stable.
    """
    size = op.Shape(self, start=-1) if dim == -1 else op.Shape(self, start=dim, end=dim + 1)
    return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)


def _exponential(self: Any, lambd: float = 1.0, generator: Any = None) -> Any:
    """Draws of the exponential distribution, of which ``gumbel_softmax`` is made: -log(1 - uniform) / lambd."""
    uniform = op.RandomUniformLike(self)  # in [0, 1)
    one, rate = op.CastLike(1.0, self), op.CastLike(lambd, self)
    return op.Div(op.Neg(op.Log(op.Sub(one, uniform))), rate)
