"""``--pack-embeddings``: the table of a Gather as codes of 8 bits, widened row by row as rows are read.

ONNX Runtime would widen the whole table at every call if DequantizeLinear stood before the Gather; so the
chosen rows are widened, by a product. TensorRT takes 8-bit constants before DequantizeLinear alone: not these.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from mamba_export.contract.weights import (
    EMBEDDING_KIND,
    ROW_CODES,
    ROW_SCALES,
    Weights,
    packed_name,
)
from mamba_export.errors import ExportError
from mamba_export.packing import Packed, pack

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def row_weights(weights: Weights) -> Weights:
    """How an embedding is stored beside products that are stored so."""
    return replace(weights, kind=EMBEDDING_KIND, symmetric=True)


def pack_embeddings(model: ir.Model, weights: Weights) -> list[str]:
    """Store the tables that a graph's inputs choose rows of as codes, in place.

    Args:
        model: an exported graph.
        weights: whose block is the rows' too.

    Returns:
        Names of the parameters that are packed.

    Raises:
        ExportError: there is none, or the block does not divide the width of a row.
    """
    graph = model.graph
    names = []
    for node in [node for node in graph if node.op_type == "Gather" and not node.domain]:
        table, indices = node.inputs[:2]
        if table is None or indices is None or not table.is_initializer():
            continue
        tensor = table.const_value
        if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
            continue
        if indices not in graph.inputs or indices.shape is None or len(indices.shape) != 2:
            continue
        name, width = str(table.name), int(tensor.shape.numpy()[1])
        if width % weights.block:
            raise ExportError(
                f"--block {weights.block} does not divide the {width} numbers of a row of {name}: leave "
                "--pack-embeddings out"
            )
        _replace(graph, node, tensor, weights.block, _stored(graph, name, tensor, weights))
        if not table.uses():
            del graph.initializers[name]
        names.append(name)
    if not names:
        raise ExportError(
            "--pack-embeddings: the model has no embedding of its input: leave it out"
        )
    return names


def _stored(
    graph: ir.Graph, name: str, tensor: ir.TensorProtocol, weights: Weights
) -> tuple[ir.Value, ir.Value]:
    """Initializers of the codes and of the scales."""
    rows, width = (int(size) for size in tensor.shape.numpy())

    @functools.lru_cache(maxsize=1)
    def packed() -> Packed:
        matrix = np.asarray(tensor.numpy()).T
        return pack(matrix, row_weights(weights), tensor.dtype.numpy())

    def value(part: str, array: str, dtype: ir.DataType, columns: int) -> ir.Value:
        label, shape = packed_name(name, part), ir.Shape((rows, columns))
        content = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(getattr(packed(), array).T), dtype=dtype),
            dtype=dtype,
            shape=shape,
            name=label,
        )
        made = ir.Value(name=label, const_value=content, type=ir.TensorType(dtype), shape=shape)
        graph.initializers[label] = made
        return made

    return (
        value(ROW_CODES, "codes", ir.DataType.INT8, width),
        value(ROW_SCALES, "scales", tensor.dtype, width // weights.block),
    )


def _replace(
    graph: ir.Graph,
    gather: ir.Node,
    tensor: ir.TensorProtocol,
    block: int,
    stored: tuple[ir.Value, ir.Value],
) -> None:
    """Put nodes in a Gather's place that choose rows of the codes and of the scales, and multiply."""
    codes, scales = stored
    indices, result = gather.inputs[1], gather.outputs[0]

    def integers(part: str, *values: int) -> ir.Value:
        array = np.array(values, np.int64)
        name = f"{codes.name}.{part}"
        made = ir.Value(
            name=name,
            const_value=ir.tensor(array, name=name),
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape(array.shape),
        )
        graph.initializers[name] = made
        return made

    chosen = ir.node("Gather", [codes, indices], attributes={"axis": 0})
    wide = ir.node("Cast", [chosen.outputs[0]], attributes={"to": tensor.dtype})
    in_blocks = ir.node("Reshape", [wide.outputs[0], integers("blocks", 0, 0, -1, block)])
    factors = ir.node("Gather", [scales, indices], attributes={"axis": 0})
    of_blocks = ir.node("Unsqueeze", [factors.outputs[0], integers("last", -1)])
    scaled = ir.node("Mul", [in_blocks.outputs[0], of_blocks.outputs[0]])
    flat = ir.node("Reshape", [scaled.outputs[0], integers("flat", 0, 0, -1)])
    for node in (chosen, wide, in_blocks, factors, of_blocks, scaled, flat):
        graph.insert_before(gather, node)
    flat.outputs[0].shape, flat.outputs[0].type = result.shape, result.type
    result.replace_all_uses_with(flat.outputs[0])
    graph.remove(gather, safe=True)
