"""The table of checkpoint families; reading and writing config.json walk it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mamba_export.errors import CheckpointError, MambaExportError
from mamba_export.fields import shown
from mamba_export.models import MambaConfig
from mamba_export.models.checkpoints import state_spaces, transformers_mamba
from mamba_export.models.checkpoints.family import Description, Family
from mamba_export.models.checkpoints.fields import ConfigFields, read_object
from mamba_export.models.checkpoints.generation_config import with_generation_config
from mamba_export.untrusted import is_there

FAMILIES = (transformers_mamba.FAMILY, state_spaces.FAMILY)
"""Asked in this order whether a config.json is theirs; the first that writes is the one saved in."""

SUPPORTED = ", and ".join(
    (", ".join(family.supports for family in FAMILIES[:-1]), FAMILIES[-1].supports)
)
"""The families in words, for errors."""


def read_config(folder: Path) -> tuple[Family, Description]:
    """Read ``folder``/config.json, and what generation_config.json beside it changes.

    Raises:
        CheckpointError: a file is missing or unreadable, of another architecture, or asks for
            an option that MambaLM lacks.
    """
    path = folder / "config.json"
    if not is_there(path, error=CheckpointError):
        raise CheckpointError(
            f"{folder} holds no config.json: pass the folder of a checkpoint ({SUPPORTED})"
        )
    family, description = match(path, read_object(path))
    return family, with_generation_config(folder, description)


def match(path: Path, content: dict[str, Any]) -> tuple[Family, Description]:
    """The family of a config.json's content, and what it says.

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
            except MambaExportError as error:  # MambaConfig refused a value
                raise CheckpointError(f"{path}: {error}") from error
    model_type = fields.get("model_type")
    what = (
        f"architecture {shown(model_type)}" if model_type is not None else "an unnamed architecture"
    )
    raise CheckpointError(f"{path} is of {what}; supported are {SUPPORTED}")


def write_config(config: MambaConfig, dtype: torch.dtype) -> tuple[Family, dict[str, Any]]:
    """The family that a model is saved in, and its config.json; ``dtype`` is the matrices'."""
    for family in FAMILIES:
        if family.write is not None:
            return family, family.write(config, dtype)
    raise AssertionError("no family in the table writes")
