"""Shapes of Reshape nodes as constants: sizes that stay where they are need not be computed at every run.

PyTorch writes ``x.unflatten(-1, (heads, head_dim))`` of a dynamic batch and length as a shape that is put
together from sizes: dozens of small nodes a layer, which a runtime runs for every token. ONNX has a 0 for a
size that is that of the input at the same place.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

_SAME = 0
"""In the shape of a Reshape: the input's size at this place."""


def settle_reshapes(model: ir.Model) -> None:
    """Give every Reshape whose sizes are fixed, or the input's at the same place, a constant shape."""
    graph = model.graph
    constants: dict[tuple[int, ...], ir.Value] = {}
    for node in list(graph):
        shape = _settled(node)
        if shape is None:
            continue
        if shape not in constants:
            tensor = ir.tensor(np.array(shape, np.int64))
            name = f"shape_{'_'.join(map(str, shape))}"
            while name in graph.initializers:
                name += "_"
            constants[shape] = ir.Value(
                name=name,
                const_value=tensor,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape([len(shape)]),
            )
            graph.register_initializer(constants[shape])
        node.replace_input_with(1, constants[shape])
        node.attributes.pop("allowzero", None)  # with it a 0 is an empty axis
    common.RemoveUnusedNodesPass()(model)


def _settled(node: ir.Node) -> tuple[int, ...] | None:
    """The constant shape of a Reshape that computes its own; None where there is none."""
    if node.op_type != "Reshape" or node.domain:
        return None
    data, shape, result = node.inputs[0], node.inputs[1], node.outputs[0]
    if shape is None or shape.const_value is not None:
        return None
    if data is None or data.shape is None or result.shape is None:
        return None
    sizes = []
    for place, size in enumerate(result.shape):
        if isinstance(size, int):
            if size == 0:
                return None
            sizes.append(size)
        elif place < len(data.shape) and size.value is not None and size == data.shape[place]:
            sizes.append(_SAME)
        else:
            return None
    return tuple(sizes)
