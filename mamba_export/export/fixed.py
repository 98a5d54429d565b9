"""Sizes that a module computes from its dynamic axes and then fixes: a loop over steps in Python, for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._sympy.functions import Mod, PythonMod

from mamba_export.errors import ExportError
from mamba_export.export.user_code import FixedSizes

_OTHER_SIZES = (61, 64, 96, 1000)

HOW_TO_VARY = "leave it out of dynamic_shapes, or compute with its size as a variable"
"""What to do about an axis that a module fixes."""


def check_derived_sizes(
    exported: Any, axes: Sequence[Mapping[int, Any]], found: FixedSizes
) -> None:
    """Refuse a graph that holds for one value of a size that varies.

    PyTorch refuses an axis that a module fixes; of a size that is computed from axes, such as the number of
    patches, it writes an assertion into its graph, which ONNX has no node for.

    Args:
        exported: PyTorch's graph of a module.
        axes: dynamic axes of each of its inputs, as they were asked for.
        found: the lines that fixed sizes.

    Raises:
        ExportError: a size is fixed; names its axes, its value and the line.
    """
    for node in exported.graph.nodes:
        if node.target is not torch.ops.aten._assert_scalar.default:
            continue
        condition = getattr(node.args[0], "meta", {}).get("val")
        expression = getattr(getattr(condition, "node", None), "expr", None)
        if expression is None or not expression.is_Equality or _holds_elsewhere(expression):
            continue
        size, number = expression.args
        if size.is_Integer:
            size, number = number, size
        # A remainder that is fixed is what a U-Net asks for: its axes are multiples of a number.
        if number.is_Integer and number > 0 and not isinstance(size, Mod | PythonMod):
            value, line = found.converted[0] if found.converted else (int(number), "")
            named = " and ".join(_names(exported, size.free_symbols, axes))
            raise ExportError(
                f"the module fixes a size that it computes from {named} to {value}{line}: {HOW_TO_VARY}"
            )


def _holds_elsewhere(equation: Any) -> bool:
    """Whether an equation is one that PyTorch could not prove, rather than one that fixes a size."""
    return all(
        equation.subs(dict.fromkeys(equation.free_symbols, size)) == True  # noqa: E712 sympy's true
        for size in _OTHER_SIZES
    )


def _names(exported: Any, symbols: set[Any], axes: Sequence[Mapping[int, Any]]) -> list[str]:
    """Names of the dynamic axes that symbols are the sizes of."""
    nodes = {node.name: node for node in exported.graph.nodes}
    found = []
    for name, dims in zip(exported.graph_signature.user_inputs, axes, strict=True):
        for axis, size in enumerate(nodes[name].meta["val"].shape):
            if not isinstance(size, int) and size.node.expr.free_symbols & symbols:
                found.append(getattr(dims.get(axis), "__name__", f"axis {axis}"))
    return list(dict.fromkeys(found))
