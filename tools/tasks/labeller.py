"""A label for every step of a sequence of numbers: Mamba's layers between two linear ones; states carried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.fields import Integer
from mixers.parts_export import export_in_parts
from tasks.forecaster import MambaCore
from tasks.stored import load_weights, read_description, save_module

INPUT, OUTPUT = "features", "logits"


class Labeller(nn.Module):
    """Labels every step, from the steps so far alone.

    Args:
        features: numbers a step.
        classes: labels to choose from.
        d_model: width of Mamba's layers.
    """

    def __init__(self, features: int, classes: int, d_model: int) -> None:
        super().__init__()
        self.features, self.classes, self.d_model = features, classes, d_model
        self.enter = nn.Linear(features, d_model)
        self.core = MambaCore(d_model)
        self.leave = nn.Linear(d_model, classes)

    def forward(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Logits of each step's label.

        Args:
            features: (batch, length, features).
            state: what the part before returned, at the start ``core.initial_state``; none for a whole
                sequence.

        Returns:
            logits (batch, length, classes); then, where a state was given, the state after the last step.
        """
        y, after = self.core(self.enter(features), list(state) or None)
        return (self.leave(y), *(after if state else ()))


def save_labeller(module: nn.Module, folder: Path) -> None:
    """Write config.json and model.safetensors into a folder."""
    assert isinstance(module, Labeller)
    sizes = {name: getattr(module, name) for name in ("features", "classes", "d_model")}
    save_module(module, sizes, folder)


def load_labeller(folder: Path) -> Labeller:
    """A trained labeller, in eval mode.

    Raises:
        MambaExportError: a file is missing or damaged, or of something else.
    """
    fields = read_description(folder)
    sizes = {
        name: fields.take(name, Integer(1, 4096)) for name in ("features", "classes", "d_model")
    }
    made = Labeller(**sizes)
    load_weights(made, "the labeller", folder)
    return made.eval()


def export_labeller(labeller: Labeller, output: Path, *, force: bool = False) -> Path:
    """Export a labeller with its states as inputs and outputs; it reads parts of any length."""
    return export_in_parts(
        labeller,
        torch.zeros(2, 5, labeller.features),
        labeller.core.initial_state(2),
        output,
        input_name=INPUT,
        output_names=[OUTPUT],
        force=force,
    )


def file_logits(session: OrtSession, features: np.ndarray, part: int) -> np.ndarray:
    """Logits (batch, length, classes) of an exported labeller, which reads ``part`` steps at a time."""
    state, found = None, []
    for start in range(0, features.shape[1], part):
        logits, state = session.run(features[:, start : start + part], state)
        found.append(logits)
    return np.concatenate(found, axis=1)
