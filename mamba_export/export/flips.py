"""A sequence that is flipped, scanned and flipped back is scanned in reverse: the flips leave the graph.

Bidirectional models flip a copy of their sequence in memory, run a layer over it and flip the result. Most of
what stands between the two flips works on each step alone, so that a flip may pass it:
op(flip(x)) = flip(op(x)). A convolution or scan of ours turns its ``reverse`` attribute over as the flip
passes. Where the flip meets another along the same axis, both are gone.

The pass first adds nodes and changes none: for every value that is a flip of something, the value without the
flip. Where two flips meet, readers take that one. What nobody reads is removed at the end, so that a flip which
meets none leaves the graph as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from mamba_export import contract
from mamba_export.contract.names import LENGTH
from mamba_export.contract.spec import Axis
from mamba_export.operators import find

_ELEMENTWISE = {
    "Add", "Cast", "Div", "Erf", "Exp", "Gelu", "Identity", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Softplus",
    "Sqrt", "Sub", "Tanh",
}  # fmt: skip
_REVERSE = "reverse"
_LENGTH = Axis.parse(LENGTH)


@dataclass(frozen=True)
class _Flip:
    """What a value is a flip of.

    Args:
        source: the value before the flip.
        axis: of the value that is flipped.
        merged: sizes that ``axis`` joins, where it holds several: the last of them is flipped.
    """

    source: ir.Value
    axis: int
    merged: tuple[object, ...] | None = None


def absorb_flips(model: ir.Model) -> None:
    """Let scans run in reverse instead of flipping their sequence before and after, in place."""
    search = _Search(model.graph)
    for node in list(model.graph):
        search.visit(node)
    common.RemoveUnusedNodesPass()(model)
    search.settle()
    common.RemoveUnusedNodesPass()(model)


class _Search:
    """One walk over a graph in order."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._flips: dict[ir.Value, _Flip] = {}
        self._same: list[tuple[ir.Value, ir.Value]] = []
        self._rules: dict[str, Callable[[ir.Node], None]] = {
            "Transpose": self._transpose,
            "Squeeze": self._squeeze,
            "Unsqueeze": self._unsqueeze,
            "Split": self._other_axis,
            "Slice": self._other_axis,
            "MatMul": self._product,
            "Gemm": self._product,
            "Reshape": self._reshape,
            "LayerNormalization": self._norm,
            "ReduceMean": self._mean,
        }

    def visit(self, node: ir.Node) -> None:
        """Find out whether the node's results are flips of something."""
        if node.domain == contract.DOMAIN:
            self._ours(node)
        elif node.op_type in _ELEMENTWISE:
            self._elementwise(node)
        elif node.op_type == "Slice" and (axis := _flipped_axis(node)) is not None:
            self._flip(node, axis)
        elif node.op_type in self._rules and node.inputs and node.inputs[0] is not None:
            self._rules[node.op_type](node)

    def settle(self) -> None:
        """Where an operator of ours is read both with its flip and without, compute it once, without."""
        alive = {value for node in self.graph for value in node.outputs}
        for old, new in self._same:
            if old in alive and new in alive:
                self._replace(old, new)
        for old, flip in self._flips.items():
            producer = old.producer()
            both = old in alive and flip.source in alive and old.uses()
            if both and producer is not None and producer.domain == contract.DOMAIN:
                self._replace(old, self._flipped(flip))

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let readers of one value read another, which takes its name too where it is the graph's output."""
        if old in self.graph.outputs:
            named = ir.Node("", "Identity", [new])
            producer = old.producer()
            assert producer is not None
            self.graph.insert_after(producer, named)
            result = named.outputs[0]
            result.name, old.name = old.name, f"{old.name}_before"
            result.type, result.shape = old.type, old.shape
            new = result
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def _flipped(self, flip: _Flip) -> ir.Value:
        """A flip of a value, as nodes."""
        numbers = (-1, np.iinfo(np.int64).min, flip.axis, -1)
        inputs = [flip.source]
        for what, number in zip(("starts", "ends", "axes", "steps"), numbers, strict=True):
            name = f"{flip.source.name}_flip_{what}"
            value = ir.Value(
                name=name,
                const_value=ir.tensor(np.array([number]), name=name),
                type=ir.TensorType(ir.DataType.INT64),
                shape=ir.Shape([1]),
            )
            self.graph.initializers[name] = value
            inputs.append(value)
        node = ir.Node("", "Slice", inputs)
        producer = flip.source.producer()
        assert producer is not None
        self.graph.insert_after(producer, node)
        result = node.outputs[0]
        result.name = f"{flip.source.name}_flipped"
        result.type, result.shape = flip.source.type, flip.source.shape
        return result

    def _flip(self, node: ir.Node, axis: int) -> None:
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        before = self._flips.get(source)
        if before is not None and before.axis == axis and before.merged is None:
            self._replace(result, before.source)
        elif before is None:
            self._flips[result] = _Flip(source, axis)

    def _copy(
        self,
        node: ir.Node,
        axes: Sequence[int | None],
        *,
        merged: tuple[object, ...] | None = None,
        attributes: Sequence[ir.Attr] | None = None,
    ) -> None:
        """The node on inputs without their flips; each output is flipped along an axis, or (None) as it was."""
        inputs = [
            self._flips[value].source if value in self._flips else value for value in node.inputs
        ]
        copied = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            node.attributes.values() if attributes is None else attributes,
            num_outputs=len(node.outputs),
            version=node.version,
        )
        self.graph.insert_after(node, copied)
        for old, new, axis in zip(node.outputs, copied.outputs, axes, strict=True):
            new.name = f"{old.name}_unflipped"
            new.type, new.shape = old.type, old.shape
            if axis is None:
                self._same.append((old, new))
            else:
                self._flips[old] = _Flip(new, axis, merged)

    def _found(self, node: ir.Node, index: int = 0) -> _Flip | None:
        """The flip of one input, where no other input is flipped."""
        value = node.inputs[index] if index < len(node.inputs) else None
        others = [v for i, v in enumerate(node.inputs) if i != index]
        if value is None or any(other in self._flips for other in others):
            return None
        return self._flips.get(value)

    def _elementwise(self, node: ir.Node) -> None:
        rank = _rank(node.outputs[0])
        ends = {self._from_the_end(value) for value in node.inputs if value in self._flips}
        if rank is None or len(ends) != 1 or None in ends:
            return
        (end,) = ends
        assert end is not None
        axis, merged = end
        for value in node.inputs:  # broadcast along the axis: the same for every step
            if value is not None and value not in self._flips and not _is_one(value, axis):
                return
        self._copy(node, [rank + axis], merged=merged)

    def _from_the_end(self, value: ir.Value | None) -> tuple[int, tuple[object, ...] | None] | None:
        rank = None if value is None else _rank(value)
        if value is None or rank is None:
            return None
        flip = self._flips[value]
        return flip.axis - rank, flip.merged

    def _transpose(self, node: ir.Node) -> None:
        flip = self._found(node)
        if flip is not None and "perm" in node.attributes:
            axis = list(node.attributes["perm"].as_ints()).index(flip.axis)
            self._copy(node, [axis], merged=flip.merged)

    def _squeeze(self, node: ir.Node) -> None:
        flip, axes, rank = self._found(node), _constant(node, 1), _rank(node.inputs[0])
        if flip is None or axes is None or rank is None:
            return
        gone = {axis % rank for axis in axes}
        if flip.axis not in gone:
            axis = flip.axis - sum(one < flip.axis for one in gone)
            self._copy(node, [axis], merged=flip.merged)

    def _unsqueeze(self, node: ir.Node) -> None:
        flip, axes, rank = self._found(node), _constant(node, 1), _rank(node.outputs[0])
        if flip is None or axes is None or rank is None:
            return
        added = {axis % rank for axis in axes}
        kept = [axis for axis in range(rank) if axis not in added]
        self._copy(node, [kept[flip.axis]], merged=flip.merged)

    def _other_axis(self, node: ir.Node) -> None:
        """Split or Slice along axes that are not flipped."""
        flip, rank = self._found(node), _rank(node.inputs[0])
        axes = _constant(node, 3)
        if node.op_type == "Split":
            axes = [node.attributes["axis"].as_int()] if "axis" in node.attributes else [0]
        if flip is None or axes is None or rank is None:
            return
        if flip.axis not in {axis % rank for axis in axes}:
            self._copy(node, [flip.axis] * len(node.outputs), merged=flip.merged)

    def _product(self, node: ir.Node) -> None:
        """A product with a matrix that is the same for every step, from either side."""
        left, right = self._found(node, 0), self._found(node, 1)
        rank = _rank(node.outputs[0])
        if rank is None or ("transA" in node.attributes and node.attributes["transA"].as_int()):
            return
        if left is not None and left.axis != rank - 1 and _rank(node.inputs[1]) == 2:
            if (
                len(node.inputs) < 3 or _rank(node.inputs[2]) == 1
            ):  # Gemm's sum is the same for every step
                self._copy(node, [left.axis], merged=left.merged)
            return
        from_left = node.op_type == "MatMul" and _rank(node.inputs[0]) == 2
        if from_left and right is not None and right.axis == rank - 1:
            self._copy(node, [right.axis], merged=right.merged)

    def _norm(self, node: ir.Node) -> None:
        flip, rank = self._found(node), _rank(node.inputs[0])
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        if flip is not None and rank is not None and flip.axis < axis % rank:
            self._copy(node, [flip.axis] * len(node.outputs), merged=flip.merged)

    def _mean(self, node: ir.Node) -> None:
        flip, axes, rank = self._found(node), _constant(node, 1), _rank(node.inputs[0])
        keeps = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
        if flip is None or axes is None or rank is None or not keeps:
            return
        if flip.axis not in {axis % rank for axis in axes}:
            self._copy(node, [flip.axis], merged=flip.merged)

    def _reshape(self, node: ir.Node) -> None:
        """Axes behind the flipped one change; axes of size 1 come or go; sequences and steps are joined."""
        flip = self._found(node)
        before, after = _sizes(node.inputs[0]), _sizes(node.outputs[0])
        if flip is None or before is None or after is None:
            return
        up_to = before[: flip.axis + 1]
        if flip.merged is None and None not in up_to and after[: len(up_to)] == up_to:
            self._copy(node, [flip.axis])
            return
        axis, joins = flip.axis, flip.merged or before[flip.axis : flip.axis + 1]
        apart = (*before[:axis], *joins, *before[axis + 1 :])
        if _without_ones(apart) == _without_ones(after) and after.count(joins[-1]) == 1:
            self._copy(node, [after.index(joins[-1])])
            return
        joined = (*before[: axis - 1], None, *before[axis + 1 :])
        if flip.merged is not None or axis == 0 or len(after) != len(joined):
            return
        if all(one in (None, other) for one, other in zip(joined, after, strict=True)):
            self._copy(node, [axis - 1], merged=before[axis - 1 : axis + 1])

    def _ours(self, node: ir.Node) -> None:
        """An operator of ours, of a sequence or of each step: every input with a length must be flipped."""
        found = find(node.op_type)
        if found is None:
            return
        definition, form = found
        if not definition.spec.each_step_alone and _REVERSE not in node.attributes:
            return
        for value, row in zip(node.inputs, form.inputs, strict=True):
            flip = self._flips.get(value) if value is not None else None
            if _LENGTH in row.axes:
                if flip is None or flip.merged or flip.axis != row.axes.index(_LENGTH):
                    return
            elif flip is not None:
                return
        attributes = [
            ir.AttrInt64(name, 1 - attribute.as_int()) if name == _REVERSE else attribute
            for name, attribute in node.attributes.items()
        ]
        axes = [
            row.axes.index(_LENGTH) if _LENGTH in row.axes else None
            for row in definition.spec.outputs
        ]
        self._copy(node, axes, attributes=attributes)


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _sizes(value: ir.Value | None) -> tuple[object, ...] | None:
    """Sizes as numbers and names; None where they are not known."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def _without_ones(sizes: Sequence[object]) -> list[object]:
    return [size for size in sizes if size != 1]


def _is_one(value: ir.Value, axis: int) -> bool:
    """Whether a value has one element, or no axis, along an axis counted from the end."""
    sizes = _sizes(value)
    return sizes is not None and (len(sizes) < -axis or sizes[axis] == 1)


def _constant(node: ir.Node, index: int) -> list[int] | None:
    """An input of integers; None where it is absent or computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in value.const_value.numpy().reshape(-1)]


def _flipped_axis(node: ir.Node) -> int | None:
    """The axis that a Slice flips whole; None for another Slice."""
    starts, ends, axes, steps = (_constant(node, index) for index in range(1, 5))
    rank = _rank(node.inputs[0])
    if rank is None or axes is None or len(axes) != 1 or steps != [-1] or starts != [-1]:
        return None
    return axes[0] % rank if ends is not None and ends[0] <= np.iinfo(np.int32).min else None
