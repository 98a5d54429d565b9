"""Batches that are windows of labelled sequences, at random places."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tasks.task import Batch, MakeBatch


def windows(
    sequences: Callable[[torch.device], tuple[Tensor, Tensor]],
    length: int,
    features: Callable[[Tensor], Tensor] = lambda inputs: inputs,
) -> MakeBatch:
    """Batches of features and labels.

    Args:
        sequences: device -> inputs (sequences, steps, ...) and labels (sequences, steps) there.
        length: of a window, in steps.
        features: of a batch's inputs.
    """

    def make(batch: int, generator: torch.Generator, progress: float) -> Batch:
        device = generator.device
        inputs, labels = sequences(device)
        count, steps = labels.shape
        row = torch.randint(count, (batch, 1), generator=generator, device=device)
        start = torch.randint(steps - length + 1, (batch, 1), generator=generator, device=device)
        at = start + torch.arange(length, device=device)
        return features(inputs[row, at]), labels[row, at]

    return make
