"""transformers' own modelling files as a function of tensors: ids and states in, logits and states out.

The modelling files look their functions up in their own globals when they are called, and while a graph is
exported they take their own PyTorch code whatever is installed. So the globals are replaced for the length of a
call, and put back. Tried with transformers 5.24.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mamba_export.adapters.transformers_cache import GraphCache, LayerStates
from mamba_export.adapters.transformers_experts import dense_experts
from mamba_export.adapters.transformers_norms import gated_norm
from mamba_export.errors import ExportError
from mamba_export.models.program import SharedParameters
from mamba_export.versions import installed_versions

_OLDEST = (5, 24)
"""The version of transformers whose outputs, caches and norms are read here."""
STEPS = 2
"""Axis of steps of keys and values (batch, heads, steps, head_dim)."""
_MASKED = -30000.0
"""A number that fp16 holds: softmax makes 0 of it."""
_FORWARDS = {"Experts": dense_experts, "RMSNormGated": gated_norm}
"""What replaces ``forward`` of a modelling file's classes, by the end of their names."""


def check_modelling_file(model: nn.Module) -> None:
    """Refuse a version of transformers whose modelling file calls no function that is replaced here.

    Raises:
        ExportError: it names what is missing, or the version that is needed.
    """
    module = _modelling_file(model)
    found = installed_versions("transformers")["transformers"]
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < _OLDEST:
        raise ExportError(
            f"hybrids need transformers {_OLDEST[0]}.{_OLDEST[1]} or newer, and {found} is installed: "
            "pip install -U transformers"
        )
    for names in (("causal_conv1d_fn",), ("mamba_selective_scan", "mamba2_chunk_scan")):
        if not any(hasattr(module, name) for name in names):
            raise ExportError(
                f"{module.__name__} of transformers {found} has no {' or '.join(names)}: "
                "install transformers 5.24"
            )


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
        before = keys[0].shape[STEPS] if keys else 0
        cache = GraphCache(states, before)
        length = input_ids.shape[1]
        positions = torch.arange(length, device=input_ids.device) + before
        mask = None
        if keys:
            columns = torch.arange(before + length, device=input_ids.device)
            visible = columns <= positions[:, None]
            mask = torch.where(visible, 0.0, _MASKED).to(keys[0].dtype)[None, None]
        model: Any = self.wrapped
        with plain(model), _stateful(model, cache):
            found = model(
                input_ids=input_ids,
                position_ids=positions[None],
                attention_mask={"full_attention": mask, "linear_attention": None},
                cache=cache,
                use_cache=True,
            )
        presents = (layer.present[name] for layer in states.values() for name in layer.past)
        return (found.logits.to(model.lm_head.weight.dtype), *presents)


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """A model's attention, experts and gated norms in the forms that a graph can hold, for a while."""
    replacements: list[tuple[Any, str, Any]] = [
        (model.config, "_attn_implementation_internal", "eager"),
        (model.config, "output_router_logits", False),
    ]
    for one in vars(_modelling_file(model)).values():
        if isinstance(one, type):
            for end, forward in _FORWARDS.items():
                if one.__name__.endswith(end):
                    replacements.append((one, "forward", forward))
    with _replaced(replacements):
        yield


def _stateful(model: nn.Module, cache: GraphCache) -> contextlib.AbstractContextManager[None]:
    """The functions of a modelling file that read and write states, replaced by those of the cache."""
    functions = {
        "causal_conv1d_fn": cache.convolution,
        "mamba_selective_scan": cache.selective_scan,
        "mamba2_chunk_scan": cache.chunk_scan,
    }
    module = _modelling_file(model)
    return _replaced([(module, name, function) for name, function in functions.items()])


@contextlib.contextmanager
def _replaced(replacements: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes of objects set for a while, of those that have them."""
    there = [one for one in replacements if hasattr(one[0], one[1])]
    before = [(where, name, getattr(where, name)) for where, name, _ in there]
    for where, name, value in there:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


def _modelling_file(model: nn.Module) -> ModuleType:
    return sys.modules[type(model).__module__]
