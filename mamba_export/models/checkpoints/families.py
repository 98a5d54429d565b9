"""The table of checkpoint families; reading and writing their configurations walk it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mamba_export.errors import CheckpointError, MambaExportError
from mamba_export.fields import shown
from mamba_export.models import ModelConfig
from mamba_export.models.checkpoints import (
    mistral,
    state_spaces,
    transformers_mamba,
    transformers_mamba2,
)
from mamba_export.models.checkpoints.family import Description, Family
from mamba_export.models.checkpoints.fields import ConfigFields, read_object
from mamba_export.models.checkpoints.generation_config import with_generation_config
from mamba_export.untrusted import is_there

FAMILIES = (
    transformers_mamba.FAMILY,
    transformers_mamba2.FAMILY,
    mistral.FAMILY,
    state_spaces.FAMILY,
)
"""Asked in this order whether a configuration is theirs; the first that can write one is the one saved in."""

CONFIG_FILES = ("config.json", mistral.CONFIG_FILE)
"""A checkpoint's configuration: the first that is there."""

SUPPORTED = ", and ".join(
    (", ".join(family.supports for family in FAMILIES[:-1]), FAMILIES[-1].supports)
)
"""The families in words, for errors."""


def read_config(folder: Path) -> tuple[Family, Description]:
    """Read a folder's configuration, and what generation_config.json beside it changes.

    Raises:
        CheckpointError: a file is missing or unreadable, of another architecture, or asks for
            an option that MambaLM lacks.
    """
    paths = [folder / name for name in CONFIG_FILES]
    path = next((one for one in paths if is_there(one, error=CheckpointError)), None)
    if path is None:
        raise CheckpointError(
            f"{folder} holds no config.json: pass the folder of a checkpoint ({SUPPORTED})"
        )
    family, description = match(path, read_object(path))
    return family, with_generation_config(folder, description)


def match(path: Path, content: dict[str, Any]) -> tuple[Family, Description]:
    """The family of a configuration's content, and what it says.

    Raises:
        CheckpointError: as ``read_config``; it names ``path``.
    """
    fields = ConfigFields(path, content, SUPPORTED)
    for family in FAMILIES:
        if family.recognises(fields):
            try:
                return family, family.read(fields)
            except CheckpointError:
                raise
            except MambaExportError as error:  # the configuration refused a value
                raise CheckpointError(f"{path}: {error}") from error
    model_type = fields.get("model_type")
    what = (
        f"architecture {shown(model_type)}" if model_type is not None else "an unnamed architecture"
    )
    raise CheckpointError(f"{path} is of {what}; supported are {SUPPORTED}")


def write_config(config: ModelConfig, dtype: torch.dtype) -> tuple[Family, dict[str, Any]]:
    """The family that a model is saved in, and its config.json; ``dtype`` is the matrices'.

    Raises:
        CheckpointError: the family lacks an option of the configuration.
    """
    for family in FAMILIES:
        content = None if family.write is None else family.write(config, dtype)
        if content is not None:
            return family, content
    raise AssertionError(f"no family in the table writes a {type(config).__name__}")
