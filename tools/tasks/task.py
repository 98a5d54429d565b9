"""What a task is: inputs made as they are needed, models to compare, a loss and a figure of merit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tasks.recipe import TaskRecipe

Batch = tuple[Tensor, ...]
"""Tensors of one training step, on the model's device. Their shapes tell which CUDA graph replays them."""

MakeBatch = Callable[[int, torch.Generator, float], Batch]
"""(batch size, generator on the training's device, progress in [0, 1]) -> a batch."""

Loss = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) -> a scalar."""


@dataclass(frozen=True)
class Task:
    """A task that ``tools/train_task.py`` trains.

    Args:
        name: of the task, and of its shipped model's folder.
        title: for people.
        about: Markdown for the card: what the inputs and the targets are.
        length: of its sequences, where no other is asked for.
        shortest: the least that may be asked for.
        models: makers of the models to compare, by the name that ``--model`` takes.
        batches: of the training, for sequences of a length.
        loss: of a model on a batch.
        evaluate: (model in eval mode, device, how many sequences, their length) -> figures, each under a name
            that says what it is: "accuracy, %".
        save: writes the weights and what describes the model into a folder.
        recipe: what suits the task: options whose defaults it replaces.
        load: reads what ``save`` wrote, for trainings that start from it; None where none do.
    """

    name: str
    title: str
    about: str
    length: int
    shortest: int
    models: Mapping[str, Callable[[], nn.Module]]
    batches: Callable[[int], MakeBatch]
    loss: Loss
    evaluate: Callable[[nn.Module, torch.device, int, int], dict[str, float]]
    save: Callable[[nn.Module, Path], None]
    recipe: TaskRecipe
    load: Callable[[Path], nn.Module] | None = None
