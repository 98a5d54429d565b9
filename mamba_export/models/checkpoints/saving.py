"""MambaLM -> a folder in transformers' format."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mamba_export.errors import CheckpointError
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
        CheckpointError: the files cannot be written.
    """
    folder = Path(folder)
    family, config = write_config(model.config, dtype or model.embeddings.weight.dtype)
    text = json.dumps({**config, **(extra or {})}, indent=2, sort_keys=True) + "\n"
    tensors = _tensors(model, family, dtype)
    try:
        with (
            _folder(folder),
            _replacing(folder, "config.json", "model.safetensors") as (
                config_path,
                weights_path,
            ),
        ):
            config_path.write_text(text, encoding="utf-8")
            save_file(tensors, weights_path, metadata={"format": "pt"})
            weights_path.chmod(config_path.stat().st_mode)  # safetensors writes for the owner alone
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise CheckpointError(f"cannot write the checkpoint to {folder}: {reason}") from error


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


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Create ``folder``; take it away again if what follows fails and it is new."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # not empty: someone else's file is in it by now
                folder.rmdir()
        raise


@contextlib.contextmanager
def _replacing(folder: Path, *names: str) -> Iterator[list[Path]]:
    """Temporary paths beside ``names``, renamed to them at the end, removed if anything fails."""
    paths = [folder / f".{name}.{os.getpid()}.tmp" for name in names]
    try:
        yield paths
        for path, name in zip(paths, names, strict=True):
            path.replace(folder / name)
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
