"""Trained models of the induction task, exported by the product's own export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mamba_export
from mamba_export.models.checkpoints import load
from mixers.attention import attention_program, check_longest
from mixers.attention_checkpoint import is_attention, load_attention, read_config
from tasks.trainer import parameter_count


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Args:
        name: for people.
        folder: what ``mamba_export.export`` wrote.
        parameters: how many numbers it has learnt.
        grows: whether its state grows with what was read.
    """

    name: str
    folder: Path
    parameters: int
    grows: bool


def check_positions(folder: Path, longest: int) -> None:
    """Raise MambaExportError where a sequence of ``longest`` tokens is beyond a model's positions.

    Args:
        folder: as ``export_checkpoint`` takes it.
        longest: tokens.
    """
    if is_attention(folder):
        check_longest(read_config(folder).longest, longest)


def export_checkpoint(folder: Path, output: Path, dtype: str) -> Exported:
    """Export what ``tools/train_task.py induction-heads`` left in ``folder``, of either kind.

    Raises:
        MambaExportError: the folder holds no such model, or it is damaged.
    """
    if is_attention(folder):
        model = load_attention(folder)
        mamba_export.export(attention_program(model.half() if dtype == "fp16" else model), output)
        return Exported("attention", output, parameter_count(model), grows=True)
    mamba = load(folder).model
    mamba_export.export(mamba, output, dtype=dtype)
    return Exported("Mamba", output, parameter_count(mamba), grows=False)
