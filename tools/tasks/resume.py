"""A training's checkpoint: where it stands, so that it goes on after it was stopped."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mamba_export.errors import MambaExportError
from mamba_export.files import new_file
from mamba_export.untrusted import check_file

_FIELDS = ("recipe", "model", "optimizer", "generator", "step", "seconds", "log")


@dataclass
class State:
    """How far a training is: steps, seconds in the loop, and the log's entries."""

    step: int = 0
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)


def write(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    recipe: Any,
    state: State,
) -> None:
    """Write a checkpoint, which is whole at every moment.

    Raises:
        MambaExportError: it cannot be written.
    """
    values = {
        "recipe": dataclasses.asdict(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "step": state.step,
        "seconds": state.seconds,
        "log": state.log,
    }
    with new_file(path) as temporary:
        torch.save(values, temporary)


def read(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    recipe: Any,
) -> State:
    """Put a checkpoint's values into a training's objects. No code in the file runs.

    Raises:
        MambaExportError: the file is damaged, or of another model or recipe; nothing was changed.
    """
    check_file(path)
    begin = f"cannot go on from {path}"
    damaged = f"{begin}: it is truncated or damaged: delete it to begin anew"
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch itself does not look at the checksums
            if archive.testzip() is not None:
                raise MambaExportError(damaged)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (
        *(RuntimeError, ValueError, EOFError, OSError),
        *(zipfile.BadZipFile, NotImplementedError, pickle.UnpicklingError),
    ) as error:
        raise MambaExportError(damaged) from error
    if not isinstance(values, dict) or set(values) != set(_FIELDS):
        raise MambaExportError(f"{begin}: it is not a checkpoint of a training: name another file")
    changed = _changed(values["recipe"], dataclasses.asdict(recipe))
    if changed:
        raise MambaExportError(
            f"{begin}: it is of a training with another {changed}: give the same, or delete it to begin anew"
        )
    shapes = {name: tensor.shape for name, tensor in values["model"].items()}
    if shapes != {name: tensor.shape for name, tensor in model.state_dict().items()}:
        raise MambaExportError(f"{begin}: it is of another model: delete it to begin anew")
    model.load_state_dict(values["model"])
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(values["optimizer"])
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # on a GPU a tensor there, which each step sets
    generator.set_state(values["generator"])
    return State(values["step"], values["seconds"], values["log"])


def _changed(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first option that is not as it was; the limits may be: a training may be lengthened."""
    limits = ("steps", "max_minutes")
    return next((name for name in new if name not in limits and old.get(name) != new[name]), "")
