"""``--weights``: matrices of products as codes of few bits, which DequantizeLinear widens before the product.

That pair of standard nodes is what every runtime knows: ONNX Runtime makes one product on packed weights of
it when it opens the file, TensorRT a product with weight-only quantization. A whole layer becomes the form of
its node that takes codes, whose function is those pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from mamba_export import given
from mamba_export.contract import DOMAIN, LINEAR, OPERATORS
from mamba_export.contract.spec import BLOCK, Form
from mamba_export.contract.weights import (
    BLOCKS,
    CODES,
    METHODS,
    NARROW,
    PACKED_OPSET,
    SCALES,
    WEIGHT_KINDS,
    ZERO_POINTS,
    Weights,
    default_opset,
    packed_name,
)
from mamba_export.errors import ExportError
from mamba_export.packing import Packed, pack
from mamba_export.packing.rounding import code_dtype

_KEPT = 1 << 20
"""Weights of a matrix that stays in memory once it is packed: its scales may be asked for again."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_LAYERS = {op.name: op for op in OPERATORS if any(True for _ in op.packed_forms())}
_IN_LAYERS = ("int4", "int8")
"""Kinds of codes that layers' nodes take."""
_HEAD_COLUMNS = 8
"""Columns of a head's codes that our CUDA kernel reads at once. Where this does not divide a vocabulary, every
step would widen all codes: more columns are stored, whose logits a Slice takes off."""


def checked(
    weights: Any, opset: Any, dtype: str | None, calibrated: bool
) -> tuple[Weights | None, Any]:
    """The user's weights and opset, the one that the weights need where none was given.

    Args:
        weights: ``Weights``, the name of a kind of codes, or None for the file's dtype.
        opset: a version of standard ONNX or None; it is looked at only beside weights.
        dtype: of the file.
        calibrated: whether there is a text that codes are chosen for.

    Raises:
        ExportError: a runtime lacks what was asked for; names it.
    """
    if weights is None:
        if calibrated:
            raise ExportError("--calibrate is for --weights: give both, or leave it out")
        return None, default_opset(None) if opset is None else opset
    if not isinstance(weights, Weights):
        weights = Weights(given.one_of(weights, "weights", WEIGHT_KINDS, ExportError))
    given.one_of(weights.kind, "weights.kind", WEIGHT_KINDS, ExportError)
    block = given.integer(weights.block, "the block of weights", 1, error=ExportError)
    if block not in BLOCKS:
        known = ", ".join(map(str, BLOCKS))
        raise ExportError(f"the block of weights is {block}: use one of {known}")
    flags = {
        name: given.flag(getattr(weights, name), f"weights.{name}", ExportError)
        for name in ("symmetric", "head", "embeddings")
    }
    weights = replace(weights, block=block, **flags, method=METHODS[calibrated])
    if weights.kind == "fp8" and not weights.symmetric:
        raise ExportError("--weights fp8 has no zero points: leave --asymmetric out")
    if dtype == "bf16":
        raise ExportError(
            f"--weights {weights.kind} with --dtype bf16: ONNX Runtime has no DequantizeLinear to bf16: "
            "use --dtype fp16 or fp32"
        )
    if opset is None:
        return weights, default_opset(weights)
    if isinstance(opset, int) and opset < PACKED_OPSET:
        raise ExportError(
            f"--weights {weights.kind} needs opset {PACKED_OPSET} or newer, and --opset is {opset}: leave "
            "--opset out"
        )
    return weights, opset


def takes_layers(weights: Weights | None, dtype: str | None) -> bool:
    """Whether layers are to be nodes of their own where weights are stored so.

    Our CUDA kernels of whole layers read codes, in the one launch or few of a step; a file for GPUs is one of
    fp16. On a CPU the single nodes are quicker, as codes of every product then stay packed, and a file for CPUs
    is one of fp32.
    """
    return weights is None or (weights.kind in _IN_LAYERS and dtype == "fp16")


Choose = Callable[[str, np.ndarray, np.dtype], Packed]
"""Packs a matrix: its parameter's name, itself (K, N), and the dtype of the scales."""


def pack_products(
    model: ir.Model, weights: Weights, *, has_head: bool, choose: Choose | None = None
) -> list[str]:
    """Store the matrices of the graph's products as codes, in place. They are packed while the file is written.

    Args:
        model: its layers are single nodes, or nodes of their own where ``takes_layers``.
        weights: which codes.
        has_head: whether the first output is computed by a language model's output projection.
        choose: how a matrix is packed; None for each weight's nearest code.

    Returns:
        Names of the parameters that are packed.

    Raises:
        ExportError: the block does not divide the inputs of a product, or there is nothing to pack.
    """
    graph = model.graph
    head = _head(model) if has_head else None
    places = [
        place
        for place in _places(graph, weights)
        if (weights.head or place.node is not head) and place.is_packed(weights)
    ]
    if not places:
        raise ExportError(
            f"--weights {weights.kind}: the model has no product of a matrix that could be packed: leave it out"
        )
    taken = {name: tensor for place in places for name, tensor in place.matrices.values()}
    more = {
        name: -int(tensor.shape.numpy()[1]) % _HEAD_COLUMNS
        for place in places
        if place.node.op_type == LINEAR.name
        for name, tensor in place.matrices.values()
    }
    stored = {
        name: _store(graph, name, tensor, weights, choose, more.get(name, 0))
        for name, tensor in taken.items()
    }
    for place in places:
        if place.node.op_type == LINEAR.name:
            _cut(graph, place, more)
        if place.form is not None:
            _replace_layer(graph, place, stored, weights.block)
            continue
        for index, (name, _) in place.matrices.items():
            # Of its own for every product: runtimes join the two only then.
            attributes = {"axis": 0, "block_size": weights.block}
            widened = ir.node("DequantizeLinear", stored[name], attributes=attributes)
            graph.insert_before(place.node, widened)
            place.node.replace_input_with(index, widened.outputs[0])
    for node in [node for node in graph if node.op_type == "Transpose"]:
        if not node.domain and not node.outputs[0].uses():
            graph.remove(node, safe=True)
    for name in taken:
        value = graph.initializers[name]
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return list(taken)


@dataclass(frozen=True)
class _Place:
    """A node with matrices that could be packed.

    Args:
        node: a product, or a layer.
        matrices: by index of the node's input: the parameter's name, and the matrix as (inputs, outputs).
        form: of a layer, the form that takes codes.
    """

    node: ir.Node
    matrices: Mapping[int, tuple[str, ir.TensorProtocol]]
    form: Form | None = None

    def is_packed(self, weights: Weights) -> bool:
        """Whether all of its matrices are to be packed. ExportError where a block does not divide one."""
        return all(_is_packed(name, tensor, weights) for name, tensor in self.matrices.values())


def _places(graph: ir.Graph, weights: Weights) -> Iterator[_Place]:
    for node in graph:
        if node.domain == DOMAIN and node.op_type in _LAYERS:
            op = _LAYERS[node.op_type]
            packs = [i for i, tensor in enumerate(op.inputs) if tensor.packs]
            found = {i: _matrix(node.inputs[i], turn=op.inputs[i].outputs_first) for i in packs}
            matrices = {i: one for i, one in found.items() if one is not None}
            if len(matrices) == len(packs):
                forms = op.packed_forms()
                yield _Place(
                    node, matrices, next(f for f in forms if f.has_zero_points != weights.symmetric)
                )
        elif not node.domain and node.op_type == "MatMul":
            matrix = _matrix(node.inputs[1])
            if matrix is not None:
                yield _Place(node, {1: matrix})


def _matrix(value: ir.Value | None, *, turn: bool = False) -> tuple[str, ir.TensorProtocol] | None:
    """The parameter that a product takes, and itself as (inputs, outputs); None for another value.

    turn: the product takes it as (outputs, inputs).
    """
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0]:
        value, turn = producer.inputs[0], True  # an embedding that is the head as well
    tensor = value.const_value if value.is_initializer() else None
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
        return None
    return str(value.name), _turned(tensor) if turn else tensor


def _replace_layer(
    graph: ir.Graph, place: _Place, stored: Mapping[str, list[ir.Value]], block: int
) -> None:
    """Put the form of a layer that takes codes in the layer's place."""
    assert place.form is not None
    inputs: list[ir.Value | None] = []
    for index, value in enumerate(place.node.inputs):
        if index in place.matrices:
            inputs += stored[place.matrices[index][0]]
        else:
            inputs.append(value)
    attributes = [*place.node.attributes.values(), ir.AttrInt64(BLOCK.name, block)]
    old = place.node.outputs
    new = ir.Node(DOMAIN, place.form.name, inputs, attributes, num_outputs=len(old))
    ir.convenience.replace_nodes_and_values(
        graph, place.node, [place.node], [new], old, new.outputs
    )


def _cut(graph: ir.Graph, place: _Place, more: Mapping[str, int]) -> None:
    """Take off a head's output what its stored columns are more than its own."""
    [(name, tensor)] = place.matrices.values()
    if not more[name]:
        return
    [whole] = place.node.outputs
    bounds = []
    for which, number in (("start", 0), ("end", int(tensor.shape.numpy()[1])), ("axis", -1)):
        label = f"{name}.{which}"
        value = ir.Value(name=label, const_value=ir.tensor([number], name=label))
        graph.initializers[label] = value
        bounds.append(value)
    cut = ir.node("Slice", [whole, *bounds])
    [own] = cut.outputs
    own.name, own.type, own.shape = whole.name, whole.type, whole.shape
    ir.convenience.replace_all_uses_with(whole, own, replace_graph_outputs=True)
    cut.replace_input_with(0, whole)
    whole.name, whole.shape = f"{name}.outputs", None
    graph.insert_after(place.node, cut)


def _turned(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().T, dtype=tensor.dtype),
        dtype=tensor.dtype,
        shape=ir.Shape(tuple(reversed(tensor.shape.numpy()))),
        name=tensor.name,
    )


def _head(model: ir.Model) -> ir.Node | None:
    """The product that the first output comes from, through nodes of one tensor at a time."""
    node = model.graph.outputs[0].producer()
    while node is not None and node.op_type not in ("MatMul", LINEAR.name):
        node = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
    return node


def _is_packed(name: str, tensor: ir.TensorProtocol, weights: Weights) -> bool:
    """Whether a matrix is packed. ExportError where it should be and the block does not divide."""
    inputs = int(tensor.shape.numpy()[0])
    if inputs % weights.block == 0:
        return True
    if inputs < NARROW:
        return False
    fitting = [str(block) for block in BLOCKS if inputs % block == 0]
    remedy = f"use --block {' or '.join(fitting)}" if fitting else "leave --weights out"
    raise ExportError(
        f"--block {weights.block} does not divide the {inputs} inputs of {name}: {remedy}"
    )


def _store(
    graph: ir.Graph,
    name: str,
    tensor: ir.TensorProtocol,
    weights: Weights,
    choose: Choose | None,
    more: int,
) -> list[ir.Value]:
    """Initializers of a packed matrix with so many more columns, of 0, in DequantizeLinear's order."""
    inputs, outputs = (int(size) for size in tensor.shape.numpy())
    dtype = tensor.dtype.numpy()
    codes = ir.DataType.from_numpy(code_dtype(weights))

    @functools.lru_cache(maxsize=1)  # its parts are written one after the other
    def packed() -> Packed:
        matrix = np.asarray(tensor.numpy())
        return pack(matrix, weights, dtype) if choose is None else choose(name, matrix, dtype)

    columns = outputs + more
    of_blocks = (inputs // weights.block, columns)
    parts: Mapping[str, tuple[ir.DataType, tuple[int, int]]] = {
        CODES: (codes, (inputs, columns)),
        SCALES: (tensor.dtype, of_blocks),
        **({} if weights.symmetric else {ZERO_POINTS: (codes, of_blocks)}),
    }
    last = list(parts)[-1]

    def part(which: str) -> ir.TensorProtocol:
        array = getattr(packed(), which)
        if more:
            # Scales are positive.
            fill = np.full((len(array), more), which == SCALES).astype(array.dtype)
            array = np.concatenate([array, fill], axis=1)
        found = ir.tensor(array, dtype=parts[which][0])
        if which == last and inputs * outputs > _KEPT:
            packed.cache_clear()
        return found

    stored = []
    for which, (kind, shape) in parts.items():
        label = packed_name(name, which)
        value = ir.Value(
            name=label,
            const_value=ir.LazyTensor(
                functools.partial(part, which), dtype=kind, shape=ir.Shape(shape), name=name
            ),
            type=ir.TensorType(kind),
            shape=ir.Shape(shape),
        )
        graph.initializers[label] = value
        stored.append(value)
    return stored
