"""What ``export`` was given, as a program: a checkpoint, a model of this package, a module, a program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mamba_export import given
from mamba_export.adapters import transformers
from mamba_export.contract.program import Program
from mamba_export.errors import ExportError
from mamba_export.export.arguments import (
    Args,
    bind,
    check_devices,
    check_states,
    module_dtype,
)
from mamba_export.export.axes import DynamicShapes
from mamba_export.export.declare import State
from mamba_export.export.module_program import trace_module
from mamba_export.export.program_checks import check_program
from mamba_export.models import TORCH_DTYPES, MambaBackbone, MambaLM, ModelConfig, cast, checkpoints
from mamba_export.models.language_model import layers_as_nodes
from mamba_export.models.program import make_program, state_dtypes


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Args:
        program: of it.
        dtype: "fp32", "fp16" or "bf16", for the metadata.
        source: for the metadata.
        config: of a model of this package.
        genai_sizes: what ONNX Runtime GenAI is told of a language model, as ``genai_config`` has it.
        exported: PyTorch's graph, where the program was found by tracing.
        tokenizer_files, bos_token_id, pad_token_id: of a checkpoint.
        no_tokenizer: why a checkpoint has none that can be taken over, one line; None where it has, or for
            another subject.
    """

    program: Program
    dtype: str
    source: dict[str, Any]
    config: ModelConfig | None = None
    genai_sizes: dict[str, int] | None = None
    exported: Any = None
    tokenizer_files: list[Path] = field(default_factory=list)
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    no_tokenizer: str | None = None


def from_model(
    model: Any,
    dtype: str,
    *,
    last_logits_only: bool,
    state_dtype: str | None,
    say: Callable[[str], None],
) -> Subject:
    """A checkpoint's folder or id, or a language model or backbone, cast where it is of another dtype.

    Raises:
        MambaExportError: it is neither, or cannot be loaded.
    """
    of_checkpoint: dict[str, Any] = {}
    if given.is_path(model):
        # A text may be the id of a model on a hub, and is kept as it is.
        name = model if isinstance(model, str) else given.path(model, "the model", ExportError)
        say(f"loading {name}")
        if transformers.holds_supported(folder := checkpoints.locate(name, say)):
            _check_only_ours(last_logits_only, state_dtype)
            return _of_folder(folder, str(name), dtype)
        checkpoint = checkpoints.load(name, dtype=TORCH_DTYPES[dtype], progress=say)
        module: MambaLM | MambaBackbone = checkpoint.model
        of_checkpoint = {
            "tokenizer_files": checkpoint.tokenizer_files,
            "bos_token_id": checkpoint.bos_token_id,
            "pad_token_id": checkpoint.pad_token_id,
            "no_tokenizer": checkpoints.missing_tokenizer(checkpoint.folder),
        }
        source = {
            "kind": checkpoint.format,
            "name": checkpoint.source,
            "path": str(checkpoint.folder.resolve()),
        }
    elif isinstance(model, (MambaLM, MambaBackbone)):
        module = model
        if model.backbone_dtype != TORCH_DTYPES[dtype]:
            module = _cast_copy(model, TORCH_DTYPES[dtype])
        source = _module_source(model)
    elif transformers.is_supported(model):
        _check_only_ours(last_logits_only, state_dtype)
        if transformers.dtype_of(model) != TORCH_DTYPES[dtype]:
            model = transformers.cast(model, TORCH_DTYPES[dtype])
        return _of_transformers(model, dtype, _module_source(model))
    elif checkpoints.is_transformers(model):
        say("reading the model")
        module, found = checkpoints.load_module(model, dtype=TORCH_DTYPES[dtype])
        of_checkpoint = {"bos_token_id": found.bos_token_id, "pad_token_id": found.pad_token_id}
        source = _module_source(model)
    elif isinstance(model, nn.Module):
        raise ExportError(
            f"a {type(model).__name__} needs example arguments: export(module, args, output=...)"
        )
    else:
        raise ExportError(
            f"the model is {given.shown(model)}: give a checkpoint's folder or Hugging Face id, a model, or a "
            "module with args"
        )
    _check_state_dtype(module.config, dtype, state_dtype)
    program = make_program(module, last_logits_only=last_logits_only, state_dtype=state_dtype)
    sizes = {"d_model": module.config.d_model, "n_layer": module.config.n_layer}
    return Subject(program, dtype, source, module.config, sizes, **of_checkpoint)


def _of_folder(folder: Path, name: str, dtype: str) -> Subject:
    """A folder that transformers' own modelling file runs."""
    return _of_transformers(
        transformers.load(folder, TORCH_DTYPES[dtype]),
        dtype,
        {"name": name, "path": str(folder.resolve())},
        tokenizer_files=checkpoints.tokenizer_files(folder),
        no_tokenizer=checkpoints.missing_tokenizer(folder),
    )


def _of_transformers(
    model: Any, dtype: str, source: dict[str, Any], **of_checkpoint: Any
) -> Subject:
    program = transformers.make_program(model)
    return Subject(
        program,
        dtype,
        {**source, "kind": transformers.KIND},
        genai_sizes=transformers.genai_sizes(model, program),
        bos_token_id=model.config.bos_token_id,
        pad_token_id=model.config.pad_token_id,
        **of_checkpoint,
    )


def _check_only_ours(last_logits_only: bool, state_dtype: str | None) -> None:
    """Refuse what models that transformers' own modelling files run are not exported with."""
    if last_logits_only:
        raise ExportError("--last-logits-only is for Mamba, FalconMamba and Mamba2: leave it out")
    if state_dtype not in (None, "fp32"):
        raise ExportError("--state-dtype is for Mamba2: leave it out")


def _check_state_dtype(config: ModelConfig, dtype: str, state_dtype: str | None) -> None:
    allowed = state_dtypes(config, dtype)
    if state_dtype not in (None, *allowed):
        raise ExportError(
            f"--state-dtype is {state_dtype}: recurrent states of {config.mixer} in {dtype} may be "
            f"{' or '.join(allowed)}"
        )


def from_program(program: Program) -> Subject:
    """A program as it is. ExportError where a field of it is of another type."""
    check_program(program)
    return Subject(program, module_dtype(program.module), _module_source(program.module))


def from_module(
    module: Any,
    args: Args,
    dtype: str | None,
    *,
    fuse_layers: bool,
    states: Sequence[State],
    dynamic_shapes: DynamicShapes,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> Subject:
    """A user's own module; see ``trace_module``.

    Raises:
        ExportError: what cannot be taken, in one line.
    """
    if not isinstance(module, nn.Module):
        raise ExportError(f"args are for an nn.Module, and a {type(module).__name__} was given")
    source = _module_source(module)
    arguments = bind(module, args)
    check_devices(module, arguments)
    check_states(states, arguments)
    if dtype is not None and dtype != module_dtype(module):
        module = _cast_copy(module, TORCH_DTYPES[dtype])
        kept = {state.argument for state in states}
        arguments = _cast_arguments(arguments, TORCH_DTYPES[dtype], kept)
    with layers_as_nodes(module, fuse_layers):
        traced = trace_module(
            module,
            arguments,
            dynamic_shapes=dynamic_shapes,
            input_names=input_names,
            output_names=output_names,
            states=states,
        )
    return Subject(
        traced.program, traced.dtype, {**source, **traced.signature}, exported=traced.exported
    )


def _module_source(module: nn.Module) -> dict[str, Any]:
    return {"kind": "module", "name": type(module).__name__, "path": None}


def _cast_copy(module: Any, dtype: torch.dtype) -> Any:
    duplicate = copy.deepcopy(module)
    cast(duplicate, dtype)
    return duplicate


def _cast_arguments(
    arguments: Mapping[str, Tensor], dtype: torch.dtype, kept: set[str]
) -> dict[str, Tensor]:
    """Floating arguments in another dtype, but for the states."""
    return {
        name: value.to(dtype) if value.is_floating_point() and name not in kept else value
        for name, value in arguments.items()
    }
