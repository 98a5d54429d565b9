"""transformers' Mamba models as programs: states of two kinds as inputs and outputs, one graph for any length.

The modelling files look their functions up in their own globals when they are called, and while a graph is
exported they take their own PyTorch code whatever is installed. So the globals are replaced for the length of a
call, and put back. Tried with transformers 5.24.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mamba_export import contract, requirements
from mamba_export.adapters.transformers_cache import GraphCache, LayerStates
from mamba_export.adapters.transformers_experts import dense_experts
from mamba_export.contract.names import BATCH, LENGTH
from mamba_export.contract.program import Program, State, Tokens, Value
from mamba_export.errors import CheckpointError, ExportError, first_line
from mamba_export.models.program import SharedParameters
from mamba_export.operators.dtypes import DTYPE_NAMES
from mamba_export.untrusted import read_json

MODEL_TYPES = ("jamba", "zamba")
"""Those that are run by transformers' own modelling files; Mamba and FalconMamba are models of this package."""

KIND = "transformers-module"
"""What an exported folder calls its source, where it was one of them."""

_GROWS = 2
"""Axis of steps of keys and values (batch, heads, steps, head_dim)."""
_CHANNEL_PARAMETERS = (".A_log", ".mamba.D", ".dt_proj.bias", ".dt_proj_bias")
_MASKED = -30000.0
"""A number that fp16 holds: softmax makes 0 of it."""


def is_supported(model: Any) -> bool:
    """Whether ``make_program`` takes it: a language model of transformers of one of ``MODEL_TYPES``."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    of_transformers = type(model).__module__.startswith("transformers.models.")
    return (
        isinstance(model, nn.Module)
        and of_transformers
        and model_type in MODEL_TYPES
        and hasattr(model, "lm_head")
    )


def holds_supported(folder: Path) -> bool:
    """Whether a folder's config.json is of one of ``MODEL_TYPES``; False where there is none to read."""
    try:
        config = read_json(folder / "config.json", error=CheckpointError)
    except CheckpointError:
        return False  # the checkpoint's own reader says what is wrong with it
    return isinstance(config, dict) and config.get("model_type") in MODEL_TYPES


def load(folder: Path, dtype: torch.dtype) -> nn.Module:
    """A folder's model, by transformers itself, from safetensors alone and without code of the folder.

    Raises:
        MissingPackageError: transformers is not installed.
        CheckpointError: transformers cannot load it; one line.
    """
    with requirements.named():
        import transformers
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except Exception as error:  # transformers raises what it likes
        raise CheckpointError(
            f"{folder}: transformers cannot load it: {first_line(error)}"
        ) from error
    return model.eval()


def dtype_of(model: Any) -> torch.dtype:
    """Dtype of the matrices."""
    return model.lm_head.weight.dtype


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in another dtype; what a scan takes in fp32 (A_log, D, the step size's bias) stays so."""
    duplicate = copy.deepcopy(model)
    for name, parameter in duplicate.named_parameters():
        if not name.endswith(_CHANNEL_PARAMETERS):
            parameter.data = parameter.data.to(dtype)
    return duplicate


class TransformersProgram(SharedParameters):
    """A language model with its states as tensors: token ids and pasts in, logits and presents out.

    Args:
        model: what is called; it stays as it is.
        layers: names of each layer's states, by its index, in the order of the tensors.
    """

    def __init__(self, model: nn.Module, layers: dict[int, list[str]]) -> None:
        super().__init__(model)
        self.layers_states = layers

    def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """input_ids (batch, length) -> logits (batch, length, vocab_size), and the states after it."""
        given = iter(past)
        states = {
            index: LayerStates({name: next(given) for name in names})
            for index, names in self.layers_states.items()
        }
        keys = [layer.past["key"] for layer in states.values() if "key" in layer.past]
        before = keys[0].shape[_GROWS] if keys else 0
        cache = GraphCache(states, before)
        length = input_ids.shape[1]
        positions = torch.arange(length, device=input_ids.device) + before
        masks = None
        if keys:
            columns = torch.arange(before + length, device=input_ids.device)
            visible = columns <= positions[:, None]
            mask = torch.where(visible, 0.0, _MASKED).to(keys[0].dtype)[None, None]
            masks = {"full_attention": mask, "linear_attention": None}
        model: Any = self.wrapped
        with _patched(model, cache):
            found = model(
                input_ids=input_ids,
                position_ids=positions[None],
                attention_mask=masks,
                cache=cache,
                use_cache=True,
            )
        presents = (layer.present[name] for layer in states.values() for name in layer.past)
        return (found.logits, *presents)


@contextlib.contextmanager
def _patched(model: nn.Module, cache: GraphCache) -> Iterator[None]:
    """The functions of a modelling file replaced by the cache's, and attention and experts in plain PyTorch."""
    module: ModuleType = sys.modules[type(model).__module__]
    replacements: list[tuple[Any, str, Any]] = [
        (module, "causal_conv1d_fn", cache.convolution),
        (module, "mamba_selective_scan", cache.selective_scan),
        (model.config, "_attn_implementation_internal", "eager"),
    ]
    for one in vars(module).values():
        if isinstance(one, type) and one.__name__.endswith("Experts"):
            replacements.append((one, "forward", dense_experts))
    before = [(where, name, getattr(where, name)) for where, name, _ in replacements]
    for where, name, value in replacements:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


def make_program(model: Any) -> Program:
    """The program of a language model of transformers, with GenAI's names.

    Args:
        model: of one of ``MODEL_TYPES``, in the dtype that the graph is to have.

    Returns:
        input_ids (batch, length) int64 -> logits (batch, length, vocab_size). A Mamba layer has two states of
        fixed size, an attention layer keys and values that grow, a hybrid layer all four.

    Raises:
        ExportError: a state that is not known here.
    """
    dtype = DTYPE_NAMES[dtype_of(model)]
    shapes = _state_shapes(model)
    states, layers = [], {}
    for index, layer in shapes.items():
        layers[index] = list(layer)
        for name, (shape, state_dtype) in layer.items():
            past, present = contract.layer_state_names(index, name)
            grows = _GROWS if name in ("key", "value") else None
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


@torch.no_grad()
def _state_shapes(model: Any) -> dict[int, dict[str, tuple[tuple[int, ...], str]]]:
    """Shape and dtype of every layer's states, by name, from the cache that the model itself makes."""
    ids = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    cache = model(input_ids=ids, use_cache=True).cache
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
