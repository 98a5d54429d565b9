"""The models of the induction task, Mamba and a Transformer of the same size, and the task with them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mamba_export.models import MambaConfig, MambaLM, checkpoints
from mixers.attention import AttentionConfig, AttentionLM
from mixers.attention_checkpoint import is_attention, load_attention, save_attention
from tasks import induction
from tasks.induction import Examples
from tasks.recipe import TaskRecipe
from tasks.task import Task

D_MODEL, N_LAYER = 64, 2

MAMBA = MambaConfig(D_MODEL, N_LAYER, vocab_size=induction.VOCABULARY, tie_embeddings=False)
ATTENTION = AttentionConfig(
    D_MODEL, N_LAYER, vocab_size=induction.VOCABULARY, n_heads=4, mlp_width=96, tie_embeddings=False
)
"""Of about Mamba's number of parameters."""

VALIDATED = {1024: 256, 16_384: 64, 131_072: 64, induction.LONGEST: 64}
"""Lengths beyond its own that a model is looked at when its training ends, and how many sequences of each."""
_FURTHEST = 16_384  # of attention, and on a CPU: beyond it the look would take minutes
_CELLS = 1 << 27
"""How many scores of a head, or elements of a layer's activations, a call in PyTorch may have."""


def _evaluate(model: nn.Module, device: torch.device, count: int, length: int) -> dict[str, float]:
    """Accuracy in percent by length, on sequences that are neither the training's nor the test's."""
    slow = _grows(model) or device.type == "cpu"
    counts = {length: count}
    for longer, most in VALIDATED.items():
        if longer > length and not (slow and longer > _FURTHEST):
            counts[longer] = min(count, most)
    return {
        f"validation accuracy at {longer:,} tokens, %": accuracy(
            model, device, Examples(some, longer, induction.VALIDATION_SEED)
        )
        for longer, some in counts.items()
    }


@torch.no_grad()
def accuracy(model: Any, device: torch.device, examples: Examples) -> float:
    """Accuracy in percent of a model of PyTorch that reads sequences part by part, in fp32."""
    size = min(examples.length, 1024 if _grows(model) else 8192)
    rows = max(1, _CELLS // (size * (examples.length if _grows(model) else D_MODEL)))
    starts = range(0, examples.count, rows)
    states = [model.initial_state(min(rows, examples.count - start)) for start in starts]
    logits: list[np.ndarray] = []
    for part in itertools.chain(examples.parts(size), [examples.last]):
        logits = []
        for index, tokens in enumerate(torch.from_numpy(part).to(device).split(rows)):
            found, states[index] = model(tokens, states[index])
            logits.append(found[:, -1].float().cpu().numpy())
    return examples.accuracy(np.concatenate(logits))


def _grows(model: nn.Module) -> bool:
    return isinstance(model, AttentionLM)


def _save(model: nn.Module, folder: Path) -> None:
    if isinstance(model, AttentionLM):
        save_attention(model, folder)
    elif isinstance(model, MambaLM):
        checkpoints.save(model, folder)


def _load(folder: Path) -> nn.Module:
    return load_attention(folder) if is_attention(folder) else checkpoints.load(folder).model


TASK = Task(
    name="induction-heads",
    title="Induction heads",
    about=induction.ABOUT,
    length=induction.LENGTH,
    shortest=induction.SHORTEST,
    models={"attention": lambda: AttentionLM(ATTENTION), "mamba": lambda: MambaLM(MAMBA)},
    batches=induction.batches,
    loss=induction.loss,
    evaluate=_evaluate,
    save=_save,
    load=_load,
    recipe=TaskRecipe(steps=50_000, batch=64, lr=1e-3, lr_floor=0.1, beta2=0.99),
)
