"""Selective copying on exported files: accuracy of any session, and of the models by table 1's names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import mamba_export
from mamba_export.backends.registry import present, runtime
from mamba_export.backends.tensorrt import BuildOptions, build
from mamba_export.backends.tensorrt.cuda_driver import Gpu
from mamba_export.errors import MambaExportError, MambaExportWarning
from mamba_export.models import MambaLM, checkpoints
from mamba_export.operators.dispatch import forced
from mixers.model import MixerModel, export_streaming, export_whole
from tasks import copying
from tasks.copying_models import SHIPPED, TASK

_PART = 1024
"""Tokens of a call: what is between two calls is the state alone."""
_BATCH = 64


class Session(Protocol):
    """What runs an exported file: every backend's session."""

    def run(self, inputs: Any, state: Any = None) -> tuple[Any, Any]:
        """Outputs and the state after them."""


@dataclass(frozen=True)
class Score:
    """How many data tokens were given right, of how many."""

    right: int
    of: int

    @property
    def percent(self) -> float:
        """Accuracy."""
        return 100 * self.right / self.of


def load_trained(folder: Path, name: str) -> nn.Module:
    """A model that ``tools/train_task.py`` wrote, in fp32 and eval mode.

    Raises:
        MambaExportError: the folder holds no weights of this model.
    """
    if name == SHIPPED:
        return checkpoints.load(folder, dtype=torch.float32).model.eval()
    model = TASK.models[name]()
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise MambaExportError(f"{folder} holds no trained {name} ({reason})") from error
    return model.eval()


def export_forms(model: nn.Module, output: Path) -> dict[str, Path]:
    """Export a model in each of its forms, into folders of ``output``: by "recurrence" and "convolution".

    The selective models are recurrences alone.
    """
    if isinstance(model, MambaLM):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", MambaExportWarning
            )  # it has no tokenizer: tokens are symbols
            return {"recurrence": mamba_export.export(model, output / "recurrence")}
    assert isinstance(model, MixerModel)
    forms = {"recurrence": export_streaming(model, output / "recurrence")}
    if model.is_time_invariant:
        forms["convolution"] = export_whole(model, output / "convolution")
    return forms


def score(
    session: Session, count: int, length: int, *, part: int | None = _PART, batch: int = _BATCH
) -> Score:
    """What a session gives right of ``count`` held-out examples of ``length`` tokens.

    Args:
        part: tokens of a call, the state being carried between calls; None for the whole sequence at once.
        batch: sequences of a call.
    """
    tokens, data = (one.numpy() for one in copying.held_out_examples(count, length))
    right = 0
    for first in range(0, count, batch):
        rows = slice(first, first + batch)
        logits = _read(session, tokens[rows], part)
        right += int((logits.argmax(-1) == data[rows]).sum())
    return Score(right, data.size)


def _read(session: Session, tokens: np.ndarray, part: int | None) -> np.ndarray:
    """Logits of the markers, (batch, DATA_TOKENS, vocabulary)."""
    length, state = tokens.shape[1], None
    # The last part holds every marker.
    cuts = list(range(0, max(length - copying.DATA_TOKENS, 1), part or length))
    logits = np.empty(0)
    for start, end in zip(cuts, [*cuts[1:], length], strict=True):
        logits, state = session.run(tokens[:, start:end], state)
    return np.asarray(logits)[:, -copying.DATA_TOKENS :]


class _Torch:
    """A model of PyTorch as a session, whose scans are the reference's: the formula, step by step."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @torch.no_grad()
    def run(self, inputs: np.ndarray, state: Any = None) -> tuple[np.ndarray, Any]:
        with forced("reference"):
            logits, state = self._model(torch.from_numpy(inputs), state)
        return logits.numpy(), state


def score_reference(model: nn.Module, count: int, length: int) -> Score:
    """What a Mamba of this package gives right in PyTorch, on a CPU with the reference scan."""
    return score(_Torch(model.cpu()), count, length)


def score_backends(
    folder: Path, count: int, length: int, options: Sequence[str] | None = None
) -> tuple[dict[str, Score], dict[str, str]]:
    """Scores of an exported language model by the names of the backends that are here.

    Args:
        options: keys of ``mamba-export verify --backend``; None for all.

    Returns:
        The scores, and for the other backends why there is none.
    """
    problem = _build_engine(folder) if options is None or "trt" in options else ""
    found, missing = present(options, folder)
    if problem:
        missing[runtime("trt").title] = problem
    scores = {}
    for backend in found:
        try:
            scores[backend.name] = score(backend.open_model(folder), count, length)
        except MambaExportError as error:
            missing[backend.name] = str(error)
    # The folder is a scratch one: its whole path says nothing to a reader.
    return scores, {name: why.replace(str(folder), folder.name) for name, why in missing.items()}


def _build_engine(folder: Path) -> str:
    """Build the TensorRT engine of an exported folder. Why there is none; empty where it is built."""
    longest = _PART + copying.DATA_TOKENS
    try:
        Gpu()  # an engine that nothing here runs would take half a minute
        build(folder, BuildOptions(batch=(1, _BATCH, _BATCH), length=(1, _PART, longest)))
    except MambaExportError as error:
        return str(error)
    return ""
