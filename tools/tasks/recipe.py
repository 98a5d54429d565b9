"""How a model of a task is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskRecipe:
    """Everything that decides how a model is trained.

    Args:
        steps: optimiser steps, unless ``max_minutes`` ends the training earlier.
        max_minutes: time limit of the training loop; the schedule reaches its end with it. 0 for none.
        batch: sequences a step.
        lr: peak learning rate, reached after ``warmup`` steps, then a cosine down to ``lr_floor`` of it.
        weight_decay: of the linear layers' matrices alone.
        beta2: AdamW's second decay rate (the first is 0.9).
        clip: largest norm of the gradient; 0 for no limit.
        temperature: the loss is of logits divided by it. Above 1 it does not vanish in fp32 where every answer
            is right by far, and the training goes on.
        seed: of the initialisation and of the batches.
        bf16: autocast to bf16 (weights and optimiser stay fp32).
        tf32: let a GPU round the inputs of fp32 matrix products to TF32.
        cuda_graph: replay each step as one CUDA graph.
    """

    steps: int = 4000
    max_minutes: float = 0.0
    batch: int = 64
    lr: float = 2e-3
    lr_floor: float = 0.02
    warmup: int = 200
    weight_decay: float = 0.0
    beta2: float = 0.98
    clip: float = 1.0
    temperature: float = 1.0
    seed: int = 0
    bf16: bool = False
    tf32: bool = True
    cuda_graph: bool = False
