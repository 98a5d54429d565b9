"""A Transformer's folder: config.json and model.safetensors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mamba_export.errors import CheckpointError, first_line
from mamba_export.fields import Fields
from mamba_export.files import new_files, write_text
from mamba_export.untrusted import check_file, read_json
from mixers.attention import MIXER, AttentionConfig, AttentionLM

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def is_attention(folder: Path) -> bool:
    """Whether a folder's config.json is of a Transformer as ``save_attention`` writes it.

    Raises:
        CheckpointError: it cannot be read.
    """
    config = read_json(folder / CONFIG_FILE, error=CheckpointError)
    return isinstance(config, dict) and config.get("mixer") == MIXER


def save_attention(model: AttentionLM, folder: Path) -> None:
    """Write a model, on any device, into a folder.

    Raises:
        CheckpointError: a file cannot be written.
    """

    def failed(line: str) -> CheckpointError:
        return CheckpointError(f"cannot write the checkpoint to {folder}: {line}")

    tensors = {name: one.detach().cpu().contiguous() for name, one in model.named_parameters()}
    with new_files(folder, last=CONFIG_FILE, error=failed) as new:
        write_text(new / CONFIG_FILE, json.dumps(model.config.to_fields(), indent=2) + "\n")
        save_file(tensors, new / WEIGHTS_FILE, metadata={"format": "pt"})
        (new / WEIGHTS_FILE).chmod((new / CONFIG_FILE).stat().st_mode)


def read_config(folder: Path) -> AttentionConfig:
    """Read the config.json that ``save_attention`` wrote.

    Raises:
        MambaExportError: it cannot be read, or a field is missing or out of range; one line that names it.
    """
    path = folder / CONFIG_FILE
    data = read_json(path, error=CheckpointError)

    def complain(problem: str) -> CheckpointError:
        return CheckpointError(f"{path}: {problem}")

    fields = Fields(data, complain)
    names = [one.name for one in dataclasses.fields(AttentionConfig)]
    return AttentionConfig(
        **{name: fields.take(name, AttentionConfig.RULES[name]) for name in names}
    )


def load_attention(folder: Path) -> AttentionLM:
    """Read what ``save_attention`` wrote, in fp32 and eval mode.

    Raises:
        MambaExportError: a file cannot be read, a field is missing or out of range, or a tensor is not there or
            of another shape; one line that names it.
    """
    model = AttentionLM(read_config(folder))
    weights = folder / WEIGHTS_FILE
    check_file(weights, error=CheckpointError)
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise CheckpointError(f"{weights}: {first_line(error)}") from error
    for name, parameter in model.named_parameters():
        if name not in tensors or tensors[name].shape != parameter.shape:
            found = tuple(tensors[name].shape) if name in tensors else "missing"
            raise CheckpointError(
                f"{weights}: {name} is {found}, expected {tuple(parameter.shape)}"
            )
    model.load_state_dict(tensors)
    return model.eval()
