"""The ONNX file of an exported folder, opened as something that anybody may have written or damaged.

Nothing is taken on trust: it is parsed, held against ONNX's own checker, its functions may not call themselves,
and its weights lie in the folder, whole. Needs the onnx package, which a base installation has not: sessions
leave the same to their runtime.
"""

from __future__ import annotations

import graphlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from mamba_export import untrusted
from mamba_export.errors import MambaExportError, first_line
from mamba_export.folder.interface import Interface

_GRAPH_LIMIT = (1 << 31) - 1
"""Bytes of a message of protobuf."""
_AGAIN = "export the model again"
_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
}

_PACKED = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}
"""Two to a byte."""


def open_graph(path: Path, *, error: type[MambaExportError]) -> onnx.ModelProto:
    """Parse and check an ONNX file; its weights stay where they are (``check_weights``).

    Args:
        path: of the file.
        error: class of what is raised.

    Raises:
        MambaExportError: it cannot be read, is no ONNX file, or not a valid one; of type ``error``.
    """
    content = untrusted.read_bytes(path, error=error, limit=_GRAPH_LIMIT)
    try:
        model = onnx.ModelProto.FromString(content)
        # Of the file, not of the bytes: its weights are looked for beside it.
        with untrusted.utf8_name(path, error=error) as name:
            onnx.checker.check_model(name)
        _check_texts(model)
    except MambaExportError:
        raise
    except Exception as reason:  # protobuf's own and the checker's exceptions share no other base
        raise error(
            f"{path} is damaged, or no ONNX file ({first_line(reason)}): {_AGAIN}"
        ) from reason
    if not model.graph.node:
        raise error(f"{path} is damaged (it holds no node): {_AGAIN}")
    problem = _recursion(model)
    if problem:
        raise error(f"{path} is damaged ({problem}): {_AGAIN}")
    return model


def check_weights(path: Path, model: onnx.ModelProto, *, error: type[MambaExportError]) -> None:
    """Check that every tensor is whole: in the file itself, or in a file beside it.

    Args:
        path: of the ONNX file.
        model: what it holds.
        error: class of what is raised.

    Raises:
        MambaExportError: a tensor has too few or too many bytes, or lies outside of the folder or of its file;
            of type ``error``, with the tensor's name.
    """
    for tensor in _tensors(model):
        problem = _problem(path.parent, tensor)
        if problem:
            raise error(f"{path}: tensor {tensor.name or '?'} {problem}: {_AGAIN}")


def interface(model: onnx.ModelProto) -> Interface:
    """The dtypes and shapes of a graph's inputs and outputs."""
    return Interface(
        {value.name: _described(value) for value in model.graph.input},
        {value.name: _described(value) for value in model.graph.output},
    )


def known_tensors(model: onnx.ModelProto) -> dict[str, tuple[str, tuple[int | str | None, ...]]]:
    """The dtype and the shape of every tensor of a graph that the file describes, by its name."""
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    known = {value.name: _described(value) for value in values}
    weights = {
        one.name: (_NAMES.get(one.data_type, str(one.data_type)), tuple(one.dims))
        for one in graph.initializer
    }
    return known | weights


def _described(value: onnx.ValueInfoProto) -> tuple[str, tuple[int | str | None, ...]]:
    kind = value.type.tensor_type
    shape = tuple(
        size.dim_param or (size.dim_value if size.HasField("dim_value") else None)
        for size in kind.shape.dim
    )
    return _NAMES.get(kind.elem_type, str(kind.elem_type)), shape


def _recursion(model: onnx.ModelProto) -> str:
    """Names a function that calls itself, which no runtime checks before it inlines; else empty."""
    calls = {
        (function.domain, function.name): {
            (node.domain, node.op_type) for node in _nodes(function.node)
        }
        for function in model.functions
    }
    if len(calls) != len(model.functions):
        return "it has two functions of one name"
    known = {name: found & calls.keys() for name, found in calls.items()}
    try:
        graphlib.TopologicalSorter(known).prepare()
    except graphlib.CycleError as cycle:
        return f"its function {cycle.args[1][0][1]} calls itself"
    return ""


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in _nodes(graph.node):
        for attribute in node.attribute:
            yield from (attribute.g, *attribute.graphs)


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(model.graph):
        yield from graph.initializer
    nodes = [*_nodes(model.graph.node)]
    for function in model.functions:
        nodes += _nodes(function.node)
    for node in nodes:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def _problem(folder: Path, tensor: TensorProto) -> str:
    """What is wrong with where a tensor lies; empty where nothing is."""
    size = _bytes(tensor)
    if size is None:
        return "is of a dtype or a size that no program has"
    if tensor.data_location != TensorProto.EXTERNAL:
        found = len(tensor.raw_data)
        if tensor.HasField("raw_data") and found != size:
            return f"has {found} bytes, its shape needs {size}"
        return ""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if not location or location in (".", "..") or Path(location).name != location:
        return f"lies in {location!r}, expected the name of a file in the folder"
    file = folder / location
    if not file.is_file():
        return f"lies in {location}, which is not in the folder"
    try:
        offset, length = int(fields.get("offset", 0)), int(fields.get("length", size))
    except ValueError:
        return "has an offset or a length that is no number"
    if length != size:
        return f"has {length} bytes, its shape needs {size}"
    if offset < 0 or offset + length > file.stat().st_size:
        return f"ends beyond the end of {location}, which is truncated"
    return ""


def _bytes(tensor: TensorProto) -> int | None:
    """What a tensor takes as raw data; None for a dtype that no program has, or sizes that are none."""
    if any(size < 0 for size in tensor.dims):
        return None
    count = math.prod(tensor.dims)
    if tensor.data_type in _PACKED:
        return -(-count // 2)
    try:
        return count * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    except (KeyError, TypeError):
        return None


def _check_texts(model: onnx.ModelProto) -> None:
    """Raise where a text that we read is not UTF-8: protobuf then returns bytes, and the reader stumbles."""
    for tensor in _tensors(model):
        for text in (
            tensor.name,
            *(part for e in tensor.external_data for part in (e.key, e.value)),
        ):
            if not isinstance(text, str):
                raise ValueError("a name in it is not UTF-8")
