"""Optimiser steps, eagerly or as CUDA graphs, and their schedule: what every training here shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_EAGER_STEPS = 5  # before a CUDA graph is captured: Triton compiles and the allocator settles


class Schedule(Protocol):
    """What of a recipe decides the learning rate, and when the training ends."""

    @property
    def steps(self) -> int:
        """Optimiser steps, unless ``max_minutes`` ends the training earlier."""

    @property
    def max_minutes(self) -> float:
        """Time limit; 0 for none."""

    @property
    def lr(self) -> float:
        """Peak learning rate."""

    @property
    def lr_floor(self) -> float:
        """The last learning rate over the peak."""

    @property
    def warmup(self) -> int:
        """Steps to the peak."""


def progress_of(step: int, seconds: float, schedule: Schedule) -> float:
    """How much of the training is done, in [0, ...): by steps or by time, whichever is further."""
    by_time = seconds / (60 * schedule.max_minutes) if schedule.max_minutes > 0 else 0.0
    return max(step / schedule.steps, by_time)


def learning_rate(step: int, progress: float, schedule: Schedule) -> float:
    """Linear to the peak, times a cosine from 1 to ``lr_floor`` over the whole training."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    warm = min(1.0, (step + 1) / max(1, schedule.warmup))
    return schedule.lr * warm * (schedule.lr_floor + (1 - schedule.lr_floor) * cosine)


class Stepper:
    """One AdamW step after another, with a running sum of the loss.

    Args:
        loss: computes the loss from tensors that stay in place from step to step, so that a captured graph
            reads their new values. It runs inside autocast.
        groups: the optimiser's groups of parameters.
        device: of the parameters.
        beta2: AdamW's second decay rate.
        clip: largest norm of the gradient; 0 for no limit.
        bf16: autocast to bf16.
        cuda_graph: replay the steps as CUDA graphs, one for each ``shape`` that ``step`` is given.
    """

    def __init__(
        self,
        loss: Callable[[], Tensor],
        groups: Sequence[dict[str, Any]],
        device: torch.device,
        *,
        beta2: float,
        clip: float,
        bf16: bool,
        cuda_graph: bool,
    ) -> None:
        self._loss_of = loss
        self._clip = clip
        self._cuda_graph = cuda_graph
        self._autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=bf16, cache_enabled=False
        )
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        # On a GPU the learning rate is a tensor, so that a captured graph sees its changes.
        rate = torch.zeros((), device=device) if device.type == "cuda" else 0.0
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=rate,
            betas=(0.9, beta2),
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
