"""transformers' Mamba models as programs: two kinds of state, one graph for any length."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mamba_export import contract, requirements
from mamba_export.adapters.transformers_config import (
    check_folder,
    check_model,
    is_of_known_type,
)
from mamba_export.adapters.transformers_program import (
    STEPS,
    TransformersProgram,
    check_modelling_file,
    plain,
)
from mamba_export.contract.names import BATCH, LENGTH
from mamba_export.contract.program import Program, State, Tokens, Value
from mamba_export.errors import CheckpointError, ExportError, first_line
from mamba_export.operators.dtypes import DTYPE_NAMES
from mamba_export.untrusted import read_json

KIND = "transformers-module"
"""What an exported folder calls its source, where it was one of them."""

_KEPT = (
    # What a scan takes in fp32.
    ".A_log",
    ".D",
    ".dt_bias",
    ".dt_proj.bias",
    ".dt_proj_bias",
    # What transformers computes in fp32: Nemotron-H's choice of experts, rotary frequencies.
    ".gate.weight",
    ".e_score_correction_bias",
    "inv_freq",
)
"""Ends of the names of tensors that are fp32 whatever the model's dtype is."""


def is_supported(model: Any) -> bool:
    """Whether ``make_program`` takes it: a language model of transformers of one of ``MODEL_TYPES``."""
    of_transformers = type(model).__module__.startswith("transformers.models.")
    return (
        isinstance(model, nn.Module)
        and of_transformers
        and is_of_known_type(getattr(model, "config", None))
        and hasattr(model, "lm_head")
    )


def holds_supported(folder: Path) -> bool:
    """Whether a folder's config.json is of one of ``MODEL_TYPES``; False where there is none to read."""
    try:
        config = read_json(folder / "config.json", error=CheckpointError)
    except CheckpointError:
        return False  # the checkpoint's own reader says what is wrong with it
    return is_of_known_type(config)


def load(folder: Path, dtype: torch.dtype) -> nn.Module:
    """A folder's model, by transformers itself, from safetensors alone and without code of the folder.

    Raises:
        MissingPackageError: transformers is not installed.
        CheckpointError: a layer of a type that is not known, or transformers cannot load it; one line.
    """
    check_folder(folder)
    with requirements.named():
        import transformers
    try:
        with _quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype="auto",  # as it is stored: transformers would round what stays fp32 as well
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except Exception as error:  # transformers raises what it likes
        raise CheckpointError(
            f"{folder}: transformers cannot load it: {first_line(error)}"
        ) from error
    return _cast(model.eval(), dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars, and its advice to install faster kernels, from the user."""
    with requirements.named():
        from transformers.utils import logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def dtype_of(model: Any) -> torch.dtype:
    """Dtype of the matrices."""
    return model.lm_head.weight.dtype


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in another dtype; what is computed in fp32 whatever the dtype is fp32."""
    return _cast(copy.deepcopy(model), dtype)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if name.endswith(_KEPT) else dtype)
    return model


def make_program(model: Any) -> Program:
    """The program of a language model of transformers, with GenAI's names.

    Args:
        model: of one of ``MODEL_TYPES``, in the dtype that the graph is to have.

    Returns:
        input_ids (batch, length) int64 -> logits (batch, length, vocab_size). A Mamba layer has two states of
        fixed size, an attention layer keys and values that grow, a hybrid layer all four.

    Raises:
        ExportError: a layer or a state that is not known here.
    """
    check_model(model)
    check_modelling_file(model)
    dtype = DTYPE_NAMES[dtype_of(model)]
    shapes = _state_shapes(model)
    states, layers = [], {}
    for index, layer in shapes.items():
        layers[index] = list(layer)
        for name, (shape, state_dtype) in layer.items():
            past, present = contract.layer_state_names(index, name)
            grows = STEPS if name in ("key", "value") else None
            sizes: list[int | str] = [BATCH, *shape[1:]]
            if grows is not None:
                sizes[grows] = "past_length"
            states.append(State.of(past, past, present, state_dtype, tuple(sizes), grows=grows))
    vocab_size = model.lm_head.weight.shape[0]
    generation = getattr(model, "generation_config", None)
    eos = model.config.eos_token_id if generation is None else generation.eos_token_id
    return Program(
        TransformersProgram(model, layers),
        (Value(contract.INPUT_IDS, "int64", (BATCH, LENGTH)),),
        (Value(contract.LOGITS, dtype, (BATCH, LENGTH, vocab_size)),),
        tuple(states),
        Tokens(vocab_size, tuple(eos) if isinstance(eos, list) else eos),
    )


def genai_sizes(model: Any, program: Program) -> dict[str, int]:
    """What ONNX Runtime GenAI is told of a model: keywords of ``genai_config``."""
    sizes = {"d_model": model.config.hidden_size, "n_layer": model.config.num_hidden_layers}
    for state in program.states:
        if state.grows is not None:  # every attention layer has the same
            _, key_heads, _, head_dim = state.past.shape
            return {**sizes, "key_heads": int(key_heads), "head_dim": int(head_dim)}
    return sizes


@torch.no_grad()
def _state_shapes(model: Any) -> dict[int, dict[str, tuple[tuple[int, ...], str]]]:
    """Shape and dtype of every layer's states, by name, from the cache that the model itself makes."""
    ids = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    try:
        with _quiet(), plain(model):
            cache = model(input_ids=ids, use_cache=True).cache
    except Exception as error:  # sizes that do not fit, which transformers does not check
        raise ExportError(
            f"{type(model).__name__} does not run two tokens in transformers itself: {first_line(error)}"
        ) from error
    found: dict[int, dict[str, tuple[tuple[int, ...], str]]] = {}
    for index, layer in enumerate(cache.layers):
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        if getattr(layer, "conv_states", None):
            if len(layer.conv_states) != 1:
                raise ExportError(f"layer {index} has {len(layer.conv_states)} convolution states")
            batch, channels, taps = layer.conv_states[0].shape
            shapes["conv_state"] = (
                (batch, channels, taps - 1),
                DTYPE_NAMES[layer.conv_states[0].dtype],
            )
            shapes["recurrent_state"] = (tuple(layer.recurrent_states[0].shape), "fp32")
        if getattr(layer, "keys", None) is not None and layer.keys.numel():
            for name, tensor in (("key", layer.keys), ("value", layer.values)):
                shapes[name] = (tuple(tensor.shape), DTYPE_NAMES[tensor.dtype])
        if shapes:
            found[index] = shapes
    return found
