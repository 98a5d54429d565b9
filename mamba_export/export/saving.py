"""The graph and its weights to files, each write checked, and the check of what was written."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnx_ir as ir

from mamba_export import contract, given
from mamba_export.errors import ExportError, first_line
from mamba_export.files import opened, write_bytes
from mamba_export.untrusted import utf8_name

_EXTERNAL_ABOVE = 256  # bytes: smaller tensors stay in the graph's own file


def save(model: ir.Model, folder: Path) -> None:
    """Write the graph, and beside it the weights. The model's tensors then refer to that file.

    ``onnx_ir.save`` would write the weights with ``numpy.ndarray.tofile``, which reports no error where its
    last buffer is not written.

    Raises:
        OSError: not all could be written.
    """
    with opened(folder / contract.WEIGHTS_FILE) as file:
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes <= _EXTERNAL_ABOVE:
                    continue
                value.const_value = ir.ExternalTensor(
                    contract.WEIGHTS_FILE,
                    file.tell(),
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=str(tensor.name or value.name),
                    base_dir=folder,
                )
                file.write(tensor.tobytes())
    proto = ir.serde.serialize_model(model)
    write_bytes(folder / contract.MODEL_FILE, proto.SerializeToString())


def check(path: Path) -> None:
    """Run ONNX's full check, shape inference included.

    Raises:
        ExportError: the file is missing, or not valid ONNX.
    """
    path = given.path(path, "the ONNX file", ExportError)
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    try:
        with utf8_name(path, error=ExportError) as name:
            onnx.checker.check_model(name, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = first_line(error)
        raise ExportError(
            f"{path.name}: the exported graph is not valid ONNX: {reason}{_remedy(reason)}"
        ) from error


def _remedy(reason: str) -> str:
    """Where an operator takes a dtype in a newer opset alone: which."""
    found = re.search(
        r"op_type:(\w+),.* typestr: (\w+), has unsupported type: (tensor\(\w+\))", reason
    )
    if found is None:
        return ""
    name, parameter, dtype = found.groups()
    opsets = [
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == name
        and not schema.domain
        and any(
            kind.type_param_str == parameter and dtype in kind.allowed_type_strs
            for kind in schema.type_constraints
        )
    ]
    cast = "export a module of another dtype"
    return f": choose opset {min(opsets)} or newer, or {cast}" if opsets else f": {cast}"
