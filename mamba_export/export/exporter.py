"""``export``: a model to a folder with one ONNX file, tokenizer, metadata and GenAI configuration."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import onnx_ir as ir
import torch
from torch import nn

from mamba_export import adapters, contract, given
from mamba_export.contract import DEFAULT_OPSET
from mamba_export.contract.discretization import discretizations
from mamba_export.contract.program import Program
from mamba_export.contract.weights import Weights
from mamba_export.errors import ExportError, MambaExportWarning
from mamba_export.export import contents, graph, packed_weights
from mamba_export.export.arguments import Args
from mamba_export.export.axes import DynamicShapes
from mamba_export.export.calibration import Calibration, read_tokens
from mamba_export.export.declare import State
from mamba_export.export.graph import check_opset
from mamba_export.export.packed_embeddings import pack_embeddings
from mamba_export.export.program_checks import check_program
from mamba_export.export.saving import check, save
from mamba_export.export.subject import from_model, from_module, from_program
from mamba_export.files import copy_file, new_folder
from mamba_export.folder.genai import genai_config
from mamba_export.folder.metadata import write_json, write_metadata
from mamba_export.models import TORCH_DTYPES, MambaBackbone, MambaLM, checkpoints
from mamba_export.models.program import make_program
from mamba_export.versions import installed_versions

Progress = Callable[[str], None]


@overload
def export(
    model: str | Path | MambaLM | MambaBackbone | Program,
    output: str | Path,
    /,
    *,
    dtype: str | None = None,
    opset: int | None = None,
    state_dtype: str | None = None,
    weights: Weights | str | None = None,
    calibrate: str | None = None,
    last_logits_only: bool = False,
    fuse_layers: bool = True,
    force: bool = False,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
) -> Path: ...
@overload
def export(
    model: nn.Module,
    args: Args,
    /,
    *,
    output: str | Path,
    dynamic_shapes: DynamicShapes = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    states: Sequence[State] = (),
    dtype: str | None = None,
    opset: int | None = None,
    weights: Weights | str | None = None,
    calibrate: str | None = None,
    fuse_layers: bool = True,
    force: bool = False,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
) -> Path: ...
def export(
    model: str | Path | nn.Module | Program,
    args: Any = None,
    /,
    *,
    output: str | Path | None = None,
    dynamic_shapes: DynamicShapes = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    states: Sequence[State] = (),
    dtype: str | None = None,
    opset: int | None = None,
    state_dtype: str | None = None,
    weights: Weights | str | None = None,
    calibrate: str | None = None,
    last_logits_only: bool = False,
    fuse_layers: bool = True,
    force: bool = False,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write an exported folder: model.onnx (weights beside it), metadata, and what a language model needs.

    ``export("folder", "out")`` and ``export(model, "out")`` take a Mamba model; ``export(module, (image,),
    output="out", dynamic_shapes=...)`` a module of your own that calls our operators.

    Args:
        model: a checkpoint's folder or Hugging Face id, a model of this package, a program, or any
            ``nn.Module``. A module is left as it is; it is exported in eval mode.
        args: the output folder; or of a module its example arguments: a tensor, a sequence in forward's
            order, or a mapping by argument name.
        output: folder to write; it appears whole or not at all.
        dynamic_shapes: of a module: by argument, ``torch.export``'s form; axes that it leaves out are fixed.
        input_names, output_names: of a module: names in the file, in the order of args and of the flat results.
        states: of a module: arguments that results continue, ``mamba_export.State``.
        dtype: "fp32", "fp16" or "bf16": the matrices, activations and logits. Arithmetic of the scan and the
            residual stream are fp32 whatever is chosen, recurrent states too unless ``state_dtype`` says more.
            None: fp32 for a model, for a module and a program the dtypes that they have. A module's states keep
            the dtype of their example.
        opset: version of standard ONNX; None for 20, with ``weights`` for 21.
        state_dtype: of the recurrent states of a Mamba-2 model: "fp32", or the model's dtype, which halves what
            every step reads and writes of them. None: fp32.
        weights: how the matrices of products are stored, as ``Weights`` or as the name of a kind of codes,
            "int4", "int8" or "fp8"; layers stay nodes of their own in fp16 with "int4" and "int8". None for the
            file's dtype.
        calibrate: a text that codes of ``weights`` are chosen for (GPTQ); None for each weight's nearest code.
        last_logits_only: return the last step's logits alone, (batch, 1, vocab_size).
        fuse_layers: put each layer of the common form into one ``MambaLayer`` node, which kernels run in a few
            launches and every other runtime inlines. False leaves the single nodes.
        force: replace an existing folder that `export` wrote, or an empty one; never one that is, holds or lies
            in the checkpoint or the tokenizer.
        tokenizer: folder or Hugging Face id whose tokenizer is copied beside the graph; None for the
            checkpoint's own. Where it has none (those in state-spaces' format, a tokenizer.model alone), a
            ``MambaExportWarning`` says so.
        progress: called with a line at each stage.

    Returns:
        The folder.

    Raises:
        MambaExportError: bad input, or what cannot be exported, one clear line; nothing is written.
    """
    given.function(progress, "progress", ExportError)
    last_logits_only = given.flag(last_logits_only, "last_logits_only", ExportError)
    fuse_layers = given.flag(fuse_layers, "fuse_layers", ExportError)
    force = given.flag(force, "force", ExportError)
    say: Progress = progress or (lambda _: None)
    if output is None and given.is_path(args):
        output, args = args, None
    if output is None:
        raise ExportError(
            'name the folder to write: export(model, "out") or export(module, args, output="out")'
        )
    out = given.path(output, "the output folder", ExportError)
    if dtype is not None:
        dtype = given.one_of(dtype, "dtype", TORCH_DTYPES, ExportError)
    if state_dtype is not None:
        state_dtype = given.one_of(state_dtype, "state_dtype", TORCH_DTYPES, ExportError)
        if args is not None or isinstance(model, Program):
            raise ExportError("state_dtype is of a model of this package: leave it out")
    # Before minutes are spent on loading.
    packed, opset = packed_weights.checked(weights, opset, dtype, calibrated=calibrate is not None)
    check_opset(opset)
    fuse_layers = fuse_layers and packed_weights.takes_layers(packed, dtype)
    of_a_module = {
        "dynamic_shapes": dynamic_shapes,
        "input_names": input_names,
        "output_names": output_names,
        "states": states,
    }
    wanted = [
        name
        for name, value in of_a_module.items()
        if value is not None and not (isinstance(value, (tuple, list, dict)) and not value)
    ]
    if wanted and args is None:
        raise ExportError(
            f"{', '.join(wanted)} are of a module with args: export(module, args, output=...)"
        )
    read = [
        given.path(one, "a path", ExportError)
        for one in (model, tokenizer)
        if given.is_path(one) and one
    ]
    with new_folder(out, marker=contract.METADATA_FILE, force=force, sources=read) as folder:
        if isinstance(model, Program):
            subject = from_program(model)
        elif args is not None:
            subject = from_module(
                model,
                args,
                dtype,
                fuse_layers=fuse_layers,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                states=states,
            )
        else:
            subject = from_model(
                model,
                dtype or "fp32",
                last_logits_only=last_logits_only,
                state_dtype=state_dtype,
                say=say,
            )
        tokenizer_files = subject.tokenizer_files
        if tokenizer is not None:
            if not isinstance(tokenizer, str):  # a text may be an id on a hub
                tokenizer = given.path(tokenizer, "tokenizer", ExportError)
            own = [file for file in tokenizer_files if file.name == checkpoints.GENERATION_CONFIG]
            tokenizer_files = [*own, *checkpoints.locate_tokenizer(tokenizer, say)]
        elif subject.no_tokenizer is not None:
            warnings.warn(subject.no_tokenizer, MambaExportWarning, stacklevel=2)
        checkpoints.check_links(tokenizer_files)
        program = subject.program
        if last_logits_only and program.tokens is None:
            raise ExportError("--last-logits-only needs a language model; a backbone has no logits")
        _check_space(program.module, folder, out)
        for file in tokenizer_files:
            target = folder / checkpoints.name_in_output(file)
            target.parent.mkdir(exist_ok=True)
            copy_file(file, target)
        tokens = None if calibrate is None else read_tokens(calibrate, folder, program)

        say("tracing")
        if subject.exported is None:
            graph_model = graph.build(program, opset=opset, fuse_layers=fuse_layers)
        else:
            graph_model = graph.convert(subject.exported, program, opset=opset)
            contents.warn_of_random_draws(graph_model, subject.exported)
        if packed is not None:
            has_head = program.tokens is not None
            if tokens is None:
                packed_weights.pack_products(graph_model, packed, has_head=has_head)
            else:
                calibration = Calibration(program, tokens, packed, say)
                calibration.order = packed_weights.pack_products(
                    graph_model, packed, has_head=has_head, choose=calibration.pack
                )
            graph.add_functions(graph_model, opset)  # of the nodes that there are now
            if packed.embeddings:
                pack_embeddings(graph_model, packed)
        nodes = contents.count(graph_model)
        if args is not None and adapters.is_active():
            contents.warn_without_scans(nodes, type(model).__name__)
        say(f"writing {contents.described(nodes)}")
        save(graph_model, folder)
        write_metadata(
            folder,
            program,
            dtype=subject.dtype,
            opset=opset,
            weights=packed,
            discretization=discretizations(nodes),
            model=None if subject.config is None else subject.config.to_fields(),
            source=subject.source,
            versions=installed_versions("mamba_export", "torch", "onnx", "onnxscript"),
        )
        if program.tokens is not None and subject.genai_sizes is not None:
            write_json(
                folder / contract.GENAI_CONFIG_FILE,
                genai_config(
                    program.tokens,
                    **subject.genai_sizes,
                    bos_token_id=subject.bos_token_id,
                    pad_token_id=subject.pad_token_id,
                ),
            )
        say("checking")
        check(folder / contract.MODEL_FILE)
    return out


def build(
    model: MambaLM | MambaBackbone | Program,
    *,
    opset: int = DEFAULT_OPSET,
    state_dtype: str | None = None,
    last_logits_only: bool = False,
    fuse_layers: bool = True,
) -> ir.Model:
    """The ONNX graph of a model or a program, in memory; see ``graph.build``."""
    if isinstance(model, Program):
        check_program(model)
    elif not isinstance(model, (MambaLM, MambaBackbone)):
        raise ExportError(
            f"the model is {given.shown(model)}: give a MambaLM, a MambaBackbone or a Program"
        )
    else:
        model = make_program(model, last_logits_only=last_logits_only, state_dtype=state_dtype)
    return graph.build(model, opset=opset, fuse_layers=fuse_layers)


def _check_space(module: torch.nn.Module, folder: Path, out: Path) -> None:
    """Refuse early what cannot fit, rather than after minutes of work."""
    needed = sum(p.numel() * p.element_size() for p in module.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"{out}: the disk has {free / 1e9:.2f} GB free and the weights need "
            f"{needed / 1e9:.2f} GB; nothing was written"
        )
