"""A transformers model in memory -> MambaLM, by the same families as its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mamba_export.errors import CheckpointError
from mamba_export.models.checkpoints.families import match
from mamba_export.models.checkpoints.family import Description
from mamba_export.models.checkpoints.generation_config import with_content
from mamba_export.models.checkpoints.loading import assemble
from mamba_export.models.checkpoints.stored import StoredTensor
from mamba_export.models.language_model import MambaLM


def is_transformers(model: Any) -> bool:
    """Whether a module is a model of transformers, which is not imported for the question."""
    config = getattr(model, "config", None)
    return isinstance(model, nn.Module) and callable(getattr(config, "to_dict", None))


def load_module(model: Any, *, dtype: torch.dtype = torch.float32) -> tuple[MambaLM, Description]:
    """A copy of transformers' Mamba-, FalconMamba- or Mamba2ForCausalLM as a model of this package.

    Args:
        model: in any dtype, on any device; left as it is.
        dtype: see ``load``.

    Returns:
        The copy, and what the model's configurations say.

    Raises:
        CheckpointError: it is of another architecture, has no head, or its weights are quantised or not loaded.
    """
    name = type(model).__name__
    family, description = match(Path(name), dict(model.config.to_dict()))
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        description = with_content(Path(name), dict(generation.to_dict()), description)
    if getattr(model, "lm_head", None) is None:
        raise CheckpointError(
            f"{name} has no head of a language model: pass a {name.removesuffix('Model')}ForCausalLM, or save "
            "it with save_pretrained and pass the folder"
        )
    stored = {}
    for key, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
            raise CheckpointError(f"{name}: the weight {key} is not loaded: load the model first")
        stored[family.our_name(key)] = StoredTensor(
            Path(name), key, tuple(tensor.shape), tensor.dtype, tensor.detach
        )
    return assemble(Path(name), family, description.config, stored, dtype, None), description
