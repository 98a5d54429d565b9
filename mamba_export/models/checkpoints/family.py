"""A checkpoint family: what its config.json says, and how its files name MambaLM's parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mamba_export.models import ModelConfig
from mamba_export.models.checkpoints.fields import ConfigFields

MAMBA = "mamba"
MAMBA2 = "mamba2"
"""``Description.architecture`` of Mamba-1 and Mamba-2, and transformers' ``model_type``."""


@dataclass(frozen=True)
class Description:
    """What a config.json says.

    config: of the model.
    architecture: the family's own name of it, as "falcon_mamba".
    bos_token_id: token that starts a text, or None.
    pad_token_id: token that fills rows which have ended, or None.
    """

    config: ModelConfig
    architecture: str
    bos_token_id: int | None = None
    pad_token_id: int | None = None


@dataclass(frozen=True)
class Family:
    """Checkpoints that share a configuration and names of tensors; a row of ``families.FAMILIES``.

    name: ``Checkpoint.format``.
    supports: what it covers, for errors and help.
    recognises: whether a configuration file is of this family.
    read: one that is; raises CheckpointError for an option that MambaLM lacks, and
        MambaExportError where ModelConfig refuses a value.
    our_name: a file's tensor name -> MambaLM's parameter name.
    file_name: MambaLM's parameter name -> a file's tensor name.
    write: ModelConfig and the matrices' dtype -> config.json, or None for one that is not of this family; None
        for a family that is only read. Raises CheckpointError for an option that the family lacks.
    """

    name: str
    supports: str
    recognises: Callable[[ConfigFields], bool]
    read: Callable[[ConfigFields], Description]
    our_name: Callable[[str], str]
    file_name: Callable[[str], str]
    write: Callable[[ModelConfig, torch.dtype], dict[str, Any] | None] | None = None
