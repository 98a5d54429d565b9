"""Optimiser steps, eagerly or as CUDA graphs, and their schedule: what every training here shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_EAGER_STEPS = 5  # before a CUDA graph is captured: Triton compiles and the allocator settles


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """What every recipe decides.

    Args:
        steps: optimiser steps, unless ``max_minutes`` ends the training earlier.
        max_minutes: time limit of the training loop; the schedule reaches its end with it. 0 for none.
        batch: sequences a step.
        lr: peak learning rate, reached after ``warmup`` steps, then a cosine down to ``lr_floor`` of it.
        weight_decay: of the matrices of linear layers alone.
        beta2: AdamW's second decay rate (the first is 0.9).
        clip: largest norm of the gradient; 0 for no limit.
        seed: of the initialisation and of everything else that is random.
        bf16: autocast to bf16 (weights, optimiser and evaluation stay fp32).
        cuda_graph: replay each step as one CUDA graph.
    """

    steps: int
    max_minutes: float = 0.0
    batch: int
    lr: float
    lr_floor: float
    warmup: int
    weight_decay: float
    beta2: float = 0.98
    clip: float = 1.0
    seed: int = 0
    bf16: bool = False
    cuda_graph: bool = False


def progress_of(step: int, seconds: float, recipe: Optimisation) -> float:
    """How much of the training is done, in [0, ...): by steps or by time, whichever is further."""
    by_time = seconds / (60 * recipe.max_minutes) if recipe.max_minutes > 0 else 0.0
    return max(step / recipe.steps, by_time)


def learning_rate(step: int, progress: float, recipe: Optimisation) -> float:
    """Linear to the peak, times a cosine from 1 to ``lr_floor`` over the whole training."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    return recipe.lr * warm * (recipe.lr_floor + (1 - recipe.lr_floor) * cosine)


def parameter_groups(
    model: nn.Module, weight_decay: float, *, within: nn.Module | None = None
) -> list[dict[str, Any]]:
    """An optimiser's groups of the parameters that are learnt, none of them empty.

    Args:
        model: whose parameters they are.
        weight_decay: of the matrices of linear layers; the others (embeddings, norms, A_log, D) have none.
        within: the part of the model whose linear layers are meant (None: all of it).
    """
    linear = [one for one in (within or model).modules() if isinstance(one, nn.Linear)]
    decayed = {id(one.weight) for one in linear}
    parameters = [one for one in model.parameters() if one.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Stepper:
    """One AdamW step after another, with a running sum of the loss.

    Args:
        loss: computes the loss from tensors that stay in place from step to step, so that a captured graph
            reads their new values. It runs inside autocast.
        groups: the optimiser's groups of parameters.
        device: of the parameters.
        recipe: its beta2, clip, bf16 and cuda_graph (a graph for each ``shape`` that ``step`` is given).
    """

    def __init__(
        self,
        loss: Callable[[], Tensor],
        groups: Sequence[dict[str, Any]],
        device: torch.device,
        recipe: Optimisation,
    ) -> None:
        self._loss_of = loss
        self._clip = recipe.clip
        self._cuda_graph = recipe.cuda_graph
        self._autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=recipe.bf16, cache_enabled=False
        )
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        # On a GPU the learning rate is a tensor, so that a captured graph sees its changes.
        rate = torch.zeros((), device=device) if device.type == "cuda" else 0.0
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=rate,
            betas=(0.9, recipe.beta2),
            fused=device.type == "cuda",
            capturable=device.type == "cuda",
        )
        self._loss = torch.zeros((), device=device)
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._taken: dict[Hashable, int] = {}

    def step(self, lr: float, shape: Hashable = None) -> None:
        """One step at learning rate ``lr``; ``shape`` tells apart inputs of different sizes."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        taken = self._taken.get(shape, 0)
        if self._cuda_graph and taken == _EAGER_STEPS:
            self._capture(shape)
        if shape in self._graphs:
            self._graphs[shape].replay()
        elif self._cuda_graph:
            self._on_side_stream(self._compute)
        else:
            self._compute()
        self._taken[shape] = taken + 1

    def read_loss(self) -> float:
        """Sum of the losses of the steps since the last call. Waits for the device."""
        value = self._loss.item()
        self._loss.zero_()
        return value

    def _compute(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            loss = self._loss_of()
        loss.backward()
        if self._clip > 0:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self.optimizer.step()
        with torch.no_grad():
            self._loss += loss.detach()

    def _on_side_stream(self, work: Callable[[], None]) -> None:
        # Work before a capture must not run on the default stream (PyTorch, "CUDA graphs").
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self, shape: Hashable) -> None:
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._compute()
        self._graphs[shape] = graph
