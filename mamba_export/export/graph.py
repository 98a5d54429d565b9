"""From a PyTorch model to an ONNX graph: one graph for prefill and decode, states in and out."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from mamba_export import contract
from mamba_export.contract import DEFAULT_OPSET, OPSETS
from mamba_export.errors import ExportError, first_line
from mamba_export.export import passes
from mamba_export.export.functions import function_protos
from mamba_export.export.translate import translation_table
from mamba_export.models import LayerState, MambaBackbone, MambaLM
from mamba_export.models.language_model import layers_as_nodes

_IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads


class _Flat(nn.Module):
    """The model with its states as one flat list: what a graph's inputs and outputs can express."""

    def __init__(self, model: MambaLM | MambaBackbone, last_logits_only: bool) -> None:
        super().__init__()
        self.model = model
        self.last_logits_only = last_logits_only

    def forward(self, sequence: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        state = [LayerState(*past[i : i + 2]) for i in range(0, len(past), 2)]
        if isinstance(self.model, MambaLM):
            y, state = self.model(sequence, state, last_logits_only=self.last_logits_only)
        else:
            y, state = self.model(sequence, state)
        return y, [tensor for layer in state for tensor in layer]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own notes (missing torchvision, renamed axes) from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def check_opset(opset: int) -> None:
    """Raise ExportError unless ``opset`` is one of ``OPSETS``."""
    if opset not in OPSETS:
        raise ExportError(
            f"opset {opset} is not supported: use one of {OPSETS.start} to {OPSETS.stop - 1}"
        )


def build(
    model: MambaLM | MambaBackbone,
    *,
    opset: int = DEFAULT_OPSET,
    last_logits_only: bool = False,
    fuse_layers: bool = True,
) -> ir.Model:
    """Convert a model to ONNX IR, with our nodes and their functions.

    Args:
        model: in the dtype that the graph is to have.
        opset: version of standard ONNX, one of ``OPSETS``.
        last_logits_only: the graph returns the last step's logits alone, (batch, 1, vocab_size).
        fuse_layers: put each layer of the common form into one ``MambaLayer`` node.

    Returns:
        A model whose inputs are ``input_ids`` (batch, length) int64, or ``inputs_embeds`` (batch, length,
        d_model) for a backbone, and the past states; its outputs are ``logits`` (or
        ``last_hidden_state``) and the present states. Batch and length are dynamic.

    Raises:
        ExportError: the opset is not supported, or PyTorch could not export the model.
    """
    check_opset(opset)
    language_model = isinstance(model, MambaLM)
    device = next(model.parameters()).device
    # Sizes above 1, so that nothing is specialised to a batch or length of one.
    if language_model:
        sequence = torch.zeros(2, 3, dtype=torch.int64, device=device)
    else:
        width = model.config.d_model
        sequence = torch.zeros(2, 3, width, dtype=model.backbone_dtype, device=device)
    past = [tensor for layer in model.initial_state(2) for tensor in layer]
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    dynamic_shapes = {"sequence": {0: batch, 1: length}, "past": [{0: batch} for _ in past]}

    flat = _Flat(model, last_logits_only).eval()
    try:
        with _quiet(), torch.no_grad(), layers_as_nodes(flat, fuse_layers):
            program = torch.onnx.export(
                flat,
                (sequence, past),
                dynamo=True,
                optimize=False,  # see passes.simplify
                verbose=False,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                custom_translation_table=translation_table(),
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = first_line(error)
        raise ExportError(f"PyTorch could not export the model: {reason}") from error
    if program is None:
        raise ExportError("PyTorch returned no program for the model")
    graph_model = program.model

    graph_model.ir_version = _IR_VERSION
    graph_model.producer_name = contract.DOMAIN
    passes.simplify(graph_model)
    past_names, present_names = contract.state_names(model.config.n_layer)
    first = contract.INPUT_IDS if language_model else contract.INPUTS_EMBEDS
    output = contract.LOGITS if language_model else contract.OUTPUT_EMBEDS
    passes.rename_interface(graph_model, [first, *past_names], [output, *present_names])
    passes.rename_weights(graph_model, prefix="model.")
    passes.fold_parameters(graph_model)
    passes.strip_metadata(graph_model)
    add_functions(graph_model, opset)
    return graph_model


def add_functions(model: ir.Model, opset: int) -> None:
    """Add the function of every operator of our domain that the graph uses, in place."""
    protos = {proto.name: proto for proto in function_protos(opset)}
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
