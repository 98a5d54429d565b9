"""The graph as TensorRT's parser takes it. Weights stay in their file: none is read.

- Functions around our operators (whole layers) are inlined: TensorRT has plugins for the operators inside.
- With plugins the operators' functions are dropped. Parsers before TensorRT 10.7 (JetPack 6 has 10.3) prefer a
  function to a plugin, and a scan whose plugin is missing must be an error, not a slow loop.
- Without, the convolution is written out tap by tap, since TensorRT's optimizer refuses the loop over taps of
  its function, and the scans' functions are inlined, so that parsers that know no functions take the file too.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner

from mamba_export import contract
from mamba_export.backends.tensorrt.plugin import OPERATORS
from mamba_export.errors import EngineError, MambaExportError, first_line
from mamba_export.folder.graph import check_weights, interface, open_graph
from mamba_export.folder.interface import difference
from mamba_export.folder.metadata import Metadata
from mamba_export.requirements import named


def described_graph(metadata: Metadata, *, plugin: bool) -> tuple[onnx.ModelProto, Counter[str]]:
    """``prepare`` for an exported folder, whose graph has to be the one that its metadata describes.

    Raises:
        EngineError: as ``prepare``, or it is another graph, for which profiles would be wrong.
    """
    graph, count = prepare(metadata.model_path, plugin=plugin)
    problem = difference(metadata, interface(graph))
    if problem:
        raise EngineError(problem)
    return graph, count


def prepare(model_file: Path, *, plugin: bool) -> tuple[onnx.ModelProto, Counter[str]]:
    """The graph of an exported file for TensorRT's parser.

    Args:
        model_file: an exported model.onnx.
        plugin: whether our operators are to be plugins, or standard operators.

    Returns:
        The graph, its weights still in model.onnx's own weight file, and how many nodes of each of our
        operators it had; the nodes are named after their operator ("SelectiveScan_0").

    Raises:
        EngineError: the file is no ONNX file or a damaged one, or holds none of our operators.
    """
    model = open_graph(model_file, error=EngineError)
    check_weights(model_file, model, error=EngineError)
    try:
        prepared, count = prepare_graph(model, plugin=plugin)
    except MambaExportError:
        raise
    except Exception as error:  # of the inliner and of graphsurgeon, which share no other base
        raise EngineError(
            f"{model_file} is damaged ({first_line(error)}): export the model again"
        ) from error
    if not count:
        raise EngineError(
            f"{model_file} holds none of our operators ({', '.join(OPERATORS)}): "
            "build an engine from what `mamba-export export` wrote"
        )
    return prepared, count


def prepare_graph(model: onnx.ModelProto, *, plugin: bool) -> tuple[onnx.ModelProto, Counter[str]]:
    """``prepare`` for a graph in memory, which may be changed; it may hold none of our operators."""
    if any(function.name not in OPERATORS for function in model.functions):
        kept = [(contract.DOMAIN, name) for name in OPERATORS]
        model = onnx.inliner.inline_selected_functions(model, kept, exclude=True)
    count = _name_nodes(model)
    if plugin:
        del model.functions[:]
        return model, count
    return onnx.inliner.inline_local_functions(_spell_out_convolutions(model)), count


def _name_nodes(model: onnx.ModelProto) -> Counter[str]:
    count: Counter[str] = Counter()
    for node in model.graph.node:
        if node.domain == contract.DOMAIN and node.op_type in OPERATORS:
            node.name = f"{node.op_type}_{count[node.op_type]}"
            count[node.op_type] += 1
    return count


def _spell_out_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every CausalConv1d by slices, products and sums; arithmetic in fp32, as its function's is."""
    with named():
        import onnx_graphsurgeon as gs
        from onnx_graphsurgeon.logger import G_LOGGER

    # It warns that numpy has no bf16, and keeps such tensors as they are.
    G_LOGGER.severity = G_LOGGER.ERROR
    # Its sorting of functions recurses without end for some that hold loops.
    others = [one for one in model.functions if one.name != contract.CAUSAL_CONV1D.name]
    del model.functions[:]
    graph = gs.import_onnx(model)
    for node in [node for node in graph.nodes if node.op == contract.CAUSAL_CONV1D.name]:
        x, weight, bias, state = node.inputs
        y, last_state = node.outputs
        reverse, silu = (
            bool(node.attrs["reverse"]),
            bool(node.attrs["silu"]),
        )

        def layer(op, inputs, name, outputs=1, *, node=node, **attrs):
            results = [f"{node.name}_{name}"] if outputs == 1 else outputs
            made = graph.layer(
                op=op, name=f"{node.name}_{name}", inputs=inputs, outputs=results, attrs=attrs
            )
            return made[0]

        def integers(*values: int) -> np.ndarray:
            return np.array(values, np.int64)

        def flipped(tensor, name, outputs=1):
            before_first = np.iinfo(np.int64).min
            sides = [integers(-1), integers(before_first), integers(1), integers(-1)]
            return layer("Slice", [tensor, *sides], name, outputs)

        node.outputs.clear()
        walked = flipped(x, "walk") if reverse else x
        rows = layer("Transpose", [state], "rows", perm=[0, 2, 1])
        joined = layer("Concat", [rows, walked], "joined", axis=1)
        joined32 = layer("Cast", [joined], "joined32", to=int(onnx.TensorProto.FLOAT))
        length = layer("Shape", [x], "length", start=1, end=2)
        total = bias
        for tap in range(weight.shape[1]):
            end = layer("Add", [length, integers(tap)], f"end{tap}")
            part = layer("Slice", [joined32, integers(tap), end, integers(1)], f"part{tap}")
            column = layer("Gather", [weight, np.array(tap, np.int64)], f"column{tap}", axis=1)
            product = layer("Mul", [part, column], f"product{tap}")
            total = layer("Add", [total, product], f"total{tap}")
        if silu:
            total = layer("Mul", [total, layer("Sigmoid", [total], "sigmoid")], "silu")
        if reverse:
            total = flipped(total, "walk_back")
        layer("CastLike", [total, x], "y", [y])
        past_end = integers(np.iinfo(np.int64).max)
        last_rows = layer("Slice", [joined, length, past_end, integers(1)], "last_rows")
        layer("Transpose", [last_rows], "last_state", [last_state], perm=[0, 2, 1])
    graph.cleanup().toposort()
    result = gs.export_onnx(graph, do_type_check=False)
    result.ir_version = model.ir_version
    result.functions.extend(others)
    return result
