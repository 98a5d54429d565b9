"""``--weights``: matrices of products as codes of few bits, which DequantizeLinear widens before the product.

That pair of standard nodes is what every runtime knows: ONNX Runtime makes one product on packed weights of
it when it opens the file, TensorRT a product with weight-only quantization. Layers are then written as single
nodes: where a layer's node has a kernel, that takes no codes, and they would be widened at every call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from mamba_export import given
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


Choose = Callable[[str, np.ndarray, np.dtype], Packed]
"""Packs a matrix: its parameter's name, itself (K, N), and the dtype of the scales."""


def pack_products(
    model: ir.Model, weights: Weights, *, has_head: bool, choose: Choose | None = None
) -> list[str]:
    """Store the matrices of the graph's products as codes, in place. They are packed while the file is written.

    Args:
        model: its layers are single nodes.
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
    of_nodes = {
        node: (name, tensor)
        for node, name, tensor in _products(graph)
        if weights.head or node is not head
    }
    taken = {
        name: tensor for name, tensor in of_nodes.values() if _is_packed(name, tensor, weights)
    }
    if not taken:
        raise ExportError(
            f"--weights {weights.kind}: the model has no product of a matrix that could be packed: leave it out"
        )
    stored = {name: _store(graph, name, tensor, weights, choose) for name, tensor in taken.items()}
    for node, (name, _) in of_nodes.items():
        if name in stored:  # of its own for every product: runtimes join the two only then
            attributes = {"axis": 0, "block_size": weights.block}
            widened = ir.node("DequantizeLinear", stored[name], attributes=attributes)
            graph.insert_before(node, widened)
            node.replace_input_with(1, widened.outputs[0])
    for node in [node for node in graph if node.op_type == "Transpose"]:
        if not node.domain and not node.outputs[0].uses():
            graph.remove(node, safe=True)
    for name in taken:
        value = graph.initializers[name]
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return list(taken)


def _products(graph: ir.Graph) -> Iterator[tuple[ir.Node, str, ir.TensorProtocol]]:
    """Each product with a matrix, the matrix's parameter, and the matrix as (inputs, outputs)."""
    for node in graph:
        if node.domain or node.op_type != "MatMul" or node.inputs[1] is None:
            continue
        value, turn = node.inputs[1], False
        producer = value.producer()
        if producer is not None and producer.op_type == "Transpose" and producer.inputs[0]:
            value, turn = producer.inputs[0], True  # an embedding that is the head as well
        tensor = value.const_value if value.is_initializer() else None
        if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
            continue
        yield node, str(value.name), _turned(tensor) if turn else tensor


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
    while node is not None and node.op_type != "MatMul":
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
) -> list[ir.Value]:
    """Initializers of a packed matrix, in DequantizeLinear's order."""
    inputs, outputs = (int(size) for size in tensor.shape.numpy())
    dtype = tensor.dtype.numpy()
    codes = ir.DataType.from_numpy(code_dtype(weights))

    @functools.lru_cache(maxsize=1)  # its parts are written one after the other
    def packed() -> Packed:
        matrix = np.asarray(tensor.numpy())
        return pack(matrix, weights, dtype) if choose is None else choose(name, matrix, dtype)

    of_blocks = (inputs // weights.block, outputs)
    parts: Mapping[str, tuple[ir.DataType, tuple[int, int]]] = {
        CODES: (codes, (inputs, outputs)),
        SCALES: (tensor.dtype, of_blocks),
        **({} if weights.symmetric else {ZERO_POINTS: (codes, of_blocks)}),
    }
    last = list(parts)[-1]

    def part(which: str) -> ir.TensorProtocol:
        found = ir.tensor(getattr(packed(), which), dtype=parts[which][0])
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
