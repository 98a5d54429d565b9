"""What an exported graph holds: how many of our nodes, and whether it grew with the length that was traced."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from mamba_export import contract
from mamba_export.errors import ExportError, MambaExportWarning
from mamba_export.export import capture, user_code

_MANY = 1000
"""Nodes of PyTorch's graph above which a loop over steps may have been unrolled."""
_GROWTH = 1.2
"""Nodes at twice the sizes over nodes at the traced ones: more is a loop."""
_LOOKS_LIKE_STEPS = 8
"""Sizes of fixed axes below this are channels and colours, and are not doubled."""

_RANDOM = {
    *(f"Random{kind}" for kind in ("Normal", "NormalLike", "Uniform", "UniformLike")),
    "Bernoulli",
    "Multinomial",
}
"""Operators of ONNX that draw random numbers."""


def count(model: ir.Model) -> dict[str, int]:
    """Our nodes by operator."""
    return dict(Counter(node.op_type for node in model.graph if node.domain == contract.DOMAIN))


def described(nodes: Mapping[str, int]) -> str:
    """For people: "4 SelectiveScan, 2 CausalConv1d"."""
    return ", ".join(f"{number} {name}" for name, number in nodes.items()) or "no node of ours"


def warn_without_scans(nodes: Mapping[str, int], name: str) -> None:
    """Say so where a module for which the adapters were installed came out without an operator of ours."""
    if not nodes:
        warnings.warn(
            f"the adapters are installed, and the graph of {name} holds no scan of ours: import "
            "mamba_export.adapters.mamba_ssm before the module that defines the model",
            MambaExportWarning,
            stacklevel=4,
        )


def warn_of_growth(
    module: nn.Module, tensors: Sequence[Tensor], axes: Sequence[capture.Axes], exported: Any
) -> None:
    """Say so where the graph of a larger input has more nodes: a Python loop over steps was unrolled.

    A second graph is traced, with every fixed axis that may be a length doubled, for large graphs alone.
    A module that takes no other size is not judged.

    Args:
        module: what was traced.
        tensors, axes: examples, and the dynamic axes of each, which need no second look.
        exported: PyTorch's graph of it.
    """
    nodes = len(exported.graph.nodes)
    if nodes < _MANY:
        return
    larger = [_doubled(tensor, dynamic) for tensor, dynamic in zip(tensors, axes, strict=True)]
    if all(one is other for one, other in zip(larger, tensors, strict=True)):
        return
    try:
        again = len(capture.trace(module, larger, axes).graph.nodes)
    except ExportError:
        return
    if again > _GROWTH * nodes:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in larger)
        warnings.warn(
            f"the graph grows with its input: {nodes} nodes as traced, {again} at {shapes}. A loop over steps "
            "was unrolled; import mamba_export.adapters.mamba_ssm before the module that defines the model, or "
            "call mamba_export.operators.selective_scan",
            MambaExportWarning,
            stacklevel=4,
        )


def warn_of_random_draws(model: ir.Model, exported: Any) -> None:
    """Say so where the graph draws random numbers: no two runs of it agree, nor with PyTorch.

    Args:
        model: the ONNX graph.
        exported: PyTorch's graph, which knows the line.
    """
    drawn = Counter(node.op_type for node in model.graph if node.op_type in _RANDOM)
    if not drawn:
        return
    where = next(
        (
            user_code.place_of(node.meta.get("stack_trace") or "")
            for node in exported.graph.nodes
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            and "dropout" not in str(node.target)
        ),
        "",
    )
    nodes = ", ".join(f"{number} {name}" for name, number in drawn.items())
    warnings.warn(
        f"the graph draws random numbers ({nodes}){where}: two runs of it differ, and verify cannot compare "
        "them. Where eval mode is to decide, take the likeliest in place of a draw",
        MambaExportWarning,
        stacklevel=4,
    )


def _doubled(tensor: Tensor, dynamic: capture.Axes) -> Tensor:
    result = tensor
    for axis in range(1, tensor.dim()):
        if axis not in dynamic and tensor.shape[axis] >= _LOOKS_LIKE_STEPS:
            result = result.repeat_interleave(2, dim=axis)
    return result
