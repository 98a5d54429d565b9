"""From a program to an ONNX graph: one graph for prefill and decode, states in and out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
import torch

from mamba_export import contract, given
from mamba_export.contract import DEFAULT_OPSET, OPSETS
from mamba_export.contract.program import Program, Value
from mamba_export.errors import ExportError, MambaExportError, first_line
from mamba_export.export import capture, flips, passes, reshapes
from mamba_export.export.dtypes import ONNX
from mamba_export.export.functions import function_protos
from mamba_export.export.translate import translation_table
from mamba_export.models.language_model import layers_as_nodes

_IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads


def check_opset(opset: int) -> None:
    """Raise ExportError unless ``opset`` is one of ``OPSETS``."""
    try:
        given.integer(opset, "opset", OPSETS.start, OPSETS.stop - 1)
    except MambaExportError:
        raise ExportError(
            f"opset {given.shown(opset)} is not supported: use one of {OPSETS.start} to {OPSETS.stop - 1}"
        ) from None


def build(program: Program, *, opset: int = DEFAULT_OPSET, fuse_layers: bool = True) -> ir.Model:
    """Convert a program to ONNX IR, with our nodes and their functions.

    Args:
        program: its module in the dtype that the graph is to have.
        opset: version of standard ONNX, one of ``OPSETS``.
        fuse_layers: put each layer of the common form into one ``MambaLayer`` node.

    Returns:
        A model whose inputs are the program's and its states' pasts, and whose outputs are the program's and
        its states' presents, with their names, dtypes and symbolic axes.

    Raises:
        ExportError: the opset is not supported, PyTorch could not export the module, or it is not what the
            program says of it.
    """
    check_opset(opset)
    with layers_as_nodes(program.module, fuse_layers):
        exported = capture.trace(program.module, *capture.examples(program))
    return convert(exported, program, opset=opset)


def convert(exported: Any, program: Program, *, opset: int = DEFAULT_OPSET) -> ir.Model:
    """``build`` for a program whose module has been traced already.

    Args:
        exported: a ``torch.export.ExportedProgram`` of the program's module.
        program, opset: see ``build``.
    """
    inputs = [*program.inputs, *(state.past for state in program.states)]
    outputs = [*program.outputs, *(state.present for state in program.states)]
    names = capture.symbols(exported, inputs)
    module = program.module
    try:
        with capture.quiet(), torch.no_grad():
            converted = torch.onnx.export(
                exported,
                dynamo=True,
                optimize=False,  # see passes.simplify
                verbose=False,
                opset_version=opset,
                custom_translation_table=translation_table(),
            )
    except Exception as error:  # the exporter's own exceptions share no other base
        raise ExportError(f"PyTorch could not export the model: {_reason(error)}") from error
    if converted is None:
        raise ExportError("PyTorch returned no program for the model")
    model = converted.model

    model.ir_version = _IR_VERSION
    model.producer_name = contract.DOMAIN
    passes.simplify(model)
    reshapes.settle_reshapes(model)
    passes.rename_axes(model, lambda text: capture.renamed(text, names))
    passes.free_names(
        model,
        {value.name for value in (*inputs, *outputs)},
        {name for name, _ in (*module.named_parameters(), *module.named_buffers())},
    )
    _set_interface("input", model.graph.inputs, inputs)
    _set_interface("output", model.graph.outputs, outputs)
    passes.fold_parameters(model)
    flips.absorb_flips(model)
    passes.strip_metadata(model)
    add_functions(model, opset)
    return model


def _set_interface(kind: str, values: Any, declared: list[Value]) -> None:
    """Give the graph's inputs or outputs the program's names and axes, where dtypes and ranks agree.

    Raises:
        ExportError: they do not; names the value.
    """
    if len(values) != len(declared):
        raise ExportError(
            f"the program declares {len(declared)} {kind}s and its module has {len(values)}"
        )
    for value, expected in zip(values, declared, strict=True):
        shape = () if value.shape is None else tuple(value.shape)
        same = value.dtype == ONNX[expected.dtype] and len(shape) == len(expected.shape)
        fixed = zip(shape, expected.shape, strict=False)
        if not same or any(isinstance(found, int) and found != size for found, size in fixed):
            raise ExportError(
                f"{kind} {expected.name} is declared as {expected.dtype} {list(expected.shape)} and the "
                f"module has {value.dtype} {[str(size) for size in shape]}"
            )
        value.name = expected.name
        value.shape = ir.Shape(expected.shape)


def _reason(error: Exception) -> str:
    """What our translation refuses, the operator that it lacks, or the first line of what PyTorch says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ExportError):  # of our translation
            return str(cause)
        missing = re.search(
            r"No (?:ONNX function|decompositions) (?:found|registered) for .*?(?:'([\w:.]+)'|([\w]+\.[\w.]+))",
            str(cause),
        )
        if missing:
            name = missing[1] or missing[2]
            return (
                f"ONNX has no translation of the operator {name}: compute it with others, or keep it "
                "outside of the module"
            )
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


def add_functions(model: ir.Model, opset: int) -> None:
    """Give the model the functions of the operators of our domain that the graph uses, no others, in place."""
    for identifier in [one for one in model.functions if one[0] == contract.DOMAIN]:
        del model.functions[identifier]
    protos: Mapping[str, onnx.FunctionProto] = {
        proto.name: proto for proto in function_protos(opset)
    }
    used = {node.op_type for node in model.graph if node.domain == contract.DOMAIN}
    for name in list(used):  # a function calls others
        used |= {node.op_type for node in protos[name].node if node.domain == contract.DOMAIN}
    for name, proto in protos.items():
        if name in used:
            function = ir.serde.deserialize_function(
                onnx.FunctionProto.FromString(proto.SerializeToString())
            )
            model.functions[function.identifier()] = function
    model.graph.opset_imports[contract.DOMAIN] = contract.CONTRACT_VERSION
