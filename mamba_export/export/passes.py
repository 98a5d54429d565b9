"""Graph passes that follow PyTorch's export.

Parameters keep the names they have in the checkpoint, so that ``verify`` and a reader can find them; what
the graph computes from a parameter alone is computed here once, under the parameter's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer, rewriter

from mamba_export.errors import ExportError

_REWRITES = [
    rule
    for rule in rewriter._DEFAULT_REWRITE_RULES
    if not (rule.name or "").startswith("FuseBatchNorm")
]
"""PyTorch's rewrites but for BatchNorm into a convolution: the weight would keep its name and lose its values.
The runtimes do that themselves."""


def simplify(model: ir.Model) -> None:
    """Fold constants and clean up, in place; nodes that read a parameter are left to ``fold_parameters``."""

    parameters = set(model.graph.initializers)  # before folding adds what it computes

    def should_fold(node: ir.Node) -> bool | None:
        return False if any(v is not None and v.name in parameters for v in node.inputs) else None

    common.InlinePass()(model)
    for _ in range(2):  # a rewrite may open a new chance to fold
        optimizer.fold_constants(model, should_fold=should_fold)
        rewriter.rewrite(model, pattern_rewrite_rules=_REWRITES)
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)


def rename_axes(model: ir.Model, rename: Callable[[str], str]) -> None:
    """Give symbolic sizes other names, in place, wherever the graph notes a shape."""
    graph = model.graph
    values = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *graph.outputs, *values):
        if value.shape is not None and not value.shape.frozen:
            for axis, size in enumerate(value.shape):
                if not isinstance(size, int) and size.value is not None:
                    value.shape[axis] = rename(size.value)


def free_names(model: ir.Model, names: set[str], parameters: set[str]) -> None:
    """Rename what the graph computes or holds on its way under one of these names, in place.

    Args:
        model: its inputs and outputs keep their names.
        names: that inputs and outputs are to have.
        parameters: names of the module's parameters and buffers, which stay.

    Raises:
        ExportError: a parameter or buffer has one of the names.
    """
    initializers = model.graph.initializers
    for name in sorted(names & parameters & set(initializers)):
        raise ExportError(
            f"{name} is the name of a parameter and of an input or result: give another"
        )
    interface = {*model.graph.inputs, *model.graph.outputs}
    taken = names | _names(model)

    def free(name: str) -> str:
        fresh = f"{name}_inside"
        while fresh in taken:
            fresh += "_"
        taken.add(fresh)
        return fresh

    for name in sorted(names & set(initializers)):  # constants, lifted out of the graph
        value = initializers.pop(name)
        value.name = free(name)
        initializers[value.name] = value
    for value in _values(model):
        if value.name in names and value not in interface:
            value.name = free(value.name)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """What nodes compute, and what the graphs inside nodes take, at any depth."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        yield from node.outputs
    for inner in model.graph.subgraphs():
        yield from inner.inputs


def _names(model: ir.Model) -> set[str]:
    values = (*model.graph.inputs, *model.graph.initializers.values(), *_values(model))
    return {value.name for value in values if value.name is not None}


def _transpose(node: ir.Node) -> Callable[[np.ndarray], np.ndarray]:
    permutation = node.attributes["perm"].as_ints()
    return lambda array: np.ascontiguousarray(array.transpose(permutation))


def _squeeze(node: ir.Node) -> Callable[[np.ndarray], np.ndarray]:
    axes = _squeezed_axes(node)
    return lambda array: np.squeeze(array, axis=axes)


def _squeezed_axes(node: ir.Node) -> tuple[int, ...]:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None or axes.const_value is None:
        raise ValueError("a Squeeze of a parameter has no constant axes")
    return tuple(int(axis) for axis in axes.const_value.numpy().reshape(-1))


def _unsqueeze(node: ir.Node) -> Callable[[np.ndarray], np.ndarray]:
    axes = _numbers(node)
    assert axes is not None
    return lambda array: np.expand_dims(array, axes)


def _reshape(node: ir.Node) -> Callable[[np.ndarray], np.ndarray]:
    shape = _numbers(node)
    assert shape is not None
    return lambda array: array.reshape(shape)


def _numbers(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of an Unsqueeze or the shape of a Reshape; None where they are not constant."""
    value = node.inputs[1]
    if value is None or value.const_value is None:
        return None
    return tuple(int(one) for one in value.const_value.numpy().reshape(-1))


_OF_OTHER_VALUES = ("Exp", "Neg")
_FOLDED: dict[str, Callable[[ir.Node], Callable[[np.ndarray], np.ndarray]]] = {
    "Exp": lambda node: np.exp,
    "Neg": lambda node: np.negative,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Cast": lambda node: (
        lambda array: array.astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    ),
}


_WITH_NUMBERS = ("Unsqueeze", "Reshape")


def fold_parameters(model: ir.Model) -> None:
    """Compute once, here, what is computed from one parameter alone: ``A = -exp(A_log)``, transposed weights.

    The result takes the parameter's name where it holds the parameter's values, in other places. Of an
    exponential it is the name without "_log"; where that is no other name, ".exp" is added, and ".neg" to a
    negative. A parameter with a second use stays as it is (tied embeddings are stored once). TensorRT and
    native kernels want these tensors constant, and PyTorch's own folding stops at a size and forgets the
    name. Large results are computed while the file is written, not before.
    """
    graph = model.graph
    taken = _names(model)
    renamed: set[str] = set()
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if node.domain or node.op_type not in _FOLDED or source is None or source.name is None:
            continue
        tensor = (
            graph.initializers[source.name].const_value
            if source.name in graph.initializers
            else None
        )
        if tensor is None or len(source.uses()) > 1:
            continue
        if node.op_type in _WITH_NUMBERS and not _numbers(node):
            continue
        result = node.outputs[0]
        folded = _lazily(tensor, _FOLDED[node.op_type](node), node)
        name = source.name
        if node.op_type in _OF_OTHER_VALUES and name not in renamed:
            name = name.removesuffix("_log") if node.op_type == "Exp" else name
            if name in taken:
                name = f"{source.name}.{node.op_type.lower()}"
            renamed.add(name)
        value = ir.Value(
            name=name,
            const_value=folded,
            type=ir.TensorType(folded.dtype),
            shape=ir.Shape(folded.shape),
        )
        result.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        del graph.initializers[source.name]
        graph.initializers[name] = value
        taken.add(name)
    common.RemoveUnusedNodesPass()(model)


def _lazily(
    tensor: ir.TensorProtocol,
    compute: Callable[[np.ndarray], np.ndarray],
    node: ir.Node,
) -> ir.LazyTensor:
    shape, dtype = list(tensor.shape.numpy()), tensor.dtype
    if node.op_type == "Transpose":
        shape = [shape[axis] for axis in node.attributes["perm"].as_ints()]
    elif node.op_type == "Squeeze":
        axes = {axis % len(shape) for axis in _squeezed_axes(node)}
        shape = [size for axis, size in enumerate(shape) if axis not in axes]
    elif node.op_type in _WITH_NUMBERS:
        # A view of nothing, of the tensor's shape.
        shape = list(_FOLDED[node.op_type](node)(np.broadcast_to(np.False_, shape)).shape)
    elif node.op_type == "Cast":
        dtype = ir.DataType(node.attributes["to"].as_int())
    return ir.LazyTensor(
        lambda: ir.tensor(compute(tensor.numpy()), dtype=dtype),
        dtype=dtype,
        shape=ir.Shape(shape),
        name=tensor.name,
    )


def strip_metadata(model: ir.Model) -> None:
    """Remove what PyTorch notes on nodes and values: stack traces hold paths of the exporting machine."""
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
