"""mamba_ssm.utils.hf: the two files of a state-spaces checkpoint, from a folder or the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def _file(model_name: str, name: str) -> Path:
    local = Path(model_name) / name
    if local.is_file():
        return local
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model_name, name))


def load_config_hf(model_name: str) -> dict[str, Any]:
    """config.json of a folder or an id."""
    return json.loads(_file(model_name, "config.json").read_text(encoding="utf-8"))


def load_state_dict_hf(
    model_name: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """pytorch_model.bin of a folder or an id: tensors by name, nothing else is unpickled."""
    path = _file(model_name, "pytorch_model.bin")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.to(device=device, dtype=dtype) for name, tensor in weights.items()}
