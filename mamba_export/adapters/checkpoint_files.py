"""mamba_ssm.utils.hf: the two files of a state-spaces checkpoint, from a folder or the Hugging Face hub."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_export.errors import CheckpointError
from mamba_export.models import checkpoints
from mamba_export.untrusted import read_json


def load_config_hf(model_name: str) -> dict[str, Any]:
    """config.json of a folder or an id."""
    return read_json(checkpoints.locate(model_name) / "config.json", error=CheckpointError)


def load_state_dict_hf(
    model_name: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """pytorch_model.bin of a folder or an id: tensors by name, nothing else is unpickled."""
    path = checkpoints.locate(model_name) / "pytorch_model.bin"
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.to(device=device, dtype=dtype) for name, tensor in weights.items()}
