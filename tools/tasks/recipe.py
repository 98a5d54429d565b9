"""How a model of a task is trained."""

from __future__ import annotations

from dataclasses import dataclass

from training.stepper import Optimisation


@dataclass(frozen=True, kw_only=True)
class TaskRecipe(Optimisation):
    """Everything that decides how a model is trained.

    Args:
        temperature: the loss is of logits divided by it. Above 1 it does not vanish in fp32 where every answer
            is right by far, and the training goes on.
        tf32: let a GPU round the inputs of fp32 matrix products to TF32.
    """

    steps: int = 4000
    batch: int = 64
    lr: float = 2e-3
    lr_floor: float = 0.02
    warmup: int = 200
    weight_decay: float = 0.0
    temperature: float = 1.0
    tf32: bool = True
