"""A task's trained module in a folder: what describes it in config.json, its weights in model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mamba_export.errors import MambaExportError
from mamba_export.fields import Fields
from mamba_export.files import write_text
from mamba_export.untrusted import check_file, read_json

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save_module(module: nn.Module, description: dict[str, Any], folder: Path) -> None:
    """Write both files into a folder."""
    tensors = {name: one.detach().cpu().contiguous() for name, one in module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    write_text(folder / CONFIG_FILE, json.dumps(description) + "\n")


def read_description(folder: Path) -> Fields:
    """What config.json holds.

    Raises:
        MambaExportError: it cannot be read; so does a field that is taken and not as asked.
    """
    path = folder / CONFIG_FILE
    return Fields(read_json(path), lambda problem: MambaExportError(f"{path}: {problem}"))


def load_weights(module: nn.Module, owner: str, folder: Path) -> None:
    """Fill a module from model.safetensors.

    Args:
        owner: what the module is, for the error: "the forecaster".

    Raises:
        MambaExportError: the file is missing or damaged, or of something else.
    """
    path = folder / WEIGHTS_FILE
    check_file(path)
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise MambaExportError(f"{path}: are not {owner}'s weights ({reason})") from error
