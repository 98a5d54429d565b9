"""MambaLM -> a folder in transformers' format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mamba_export import given
from mamba_export.errors import CheckpointError, first_line
from mamba_export.files import new_files, write_text
from mamba_export.models import MambaLM, cast
from mamba_export.models.checkpoints.families import write_config
from mamba_export.models.checkpoints.family import Family


def save(
    model: MambaLM,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write ``folder``/config.json and model.safetensors, which transformers and ``load`` read.

    Both files are written beside their places and renamed when they are whole: what stood there
    stays until then, and stays if writing fails.

    Args:
        model: on any device.
        folder: is created where it does not exist; other files in it stay.
        dtype: the matrices', as in ``load``; None keeps each parameter's own.
        extra: more fields for config.json, or other values for its own.

    Raises:
        CheckpointError: the model is none of ours, or the files cannot be written.
    """
    folder = given.path(folder, "the checkpoint's folder", CheckpointError)
    if not isinstance(model, MambaLM):
        raise CheckpointError(f"the model is {given.shown(model)}: give a MambaLM")
    family, config = write_config(model.config, dtype or model.embeddings.weight.dtype)
    text = json.dumps({**config, **(extra or {})}, indent=2, sort_keys=True) + "\n"
    tensors = _tensors(model, family, dtype)

    def failed(line: str) -> CheckpointError:
        return CheckpointError(f"cannot write the checkpoint to {folder}: {line}")

    with new_files(folder, last="config.json", error=failed) as new:
        write_text(new / "config.json", text)
        path = new / "model.safetensors"
        try:
            save_file(tensors, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise failed(f"{path.name}: {first_line(error)}") from error
        path.chmod((new / "config.json").stat().st_mode)  # safetensors writes for the owner alone


def _tensors(model: MambaLM, family: Family, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The model's parameters by the family's names, on the CPU."""
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    if dtype is not None:
        with torch.device("meta"):
            skeleton = MambaLM(model.config)
        cast(skeleton, dtype)
        dtypes = {name: parameter.dtype for name, parameter in skeleton.named_parameters()}
    return {
        family.file_name(name): parameter.detach().to("cpu", dtypes[name]).contiguous()
        for name, parameter in model.named_parameters()
    }
