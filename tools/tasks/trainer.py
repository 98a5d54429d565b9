"""Training of any module on batches that are made as they are needed, on the module's device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mamba_export.errors import MambaExportError
from tasks import resume
from tasks.recipe import TaskRecipe
from tasks.task import Batch, Loss, MakeBatch
from training.stepper import Stepper, learning_rate, parameter_groups, progress_of

_CHECKPOINT_SECONDS = 30.0


@dataclass
class TrainedTask:
    """Result of ``train``.

    model: the last weights, fp32, in eval mode.
    steps, seconds: what the training took, all parts of a resumed one together.
    log: {"step", "seconds", "progress", "loss"} each; loss is the mean since the entry before.
    """

    model: nn.Module
    steps: int
    seconds: float
    log: list[dict[str, Any]] = field(default_factory=list)


def train(
    model: nn.Module,
    make_batch: MakeBatch,
    loss: Loss,
    recipe: TaskRecipe,
    device: torch.device,
    *,
    report: Callable[[dict[str, Any]], None] = lambda entry: None,
    checkpoint: Path | None = None,
) -> TrainedTask:
    """Train a module with AdamW under a warmup and a cosine.

    Args:
        model: any module, whose initialisation the caller seeds; it is moved to ``device``.
        make_batch: is called before each step; the shapes may change with the progress, and each set of shapes
            gets a CUDA graph of its own.
        loss: is captured with the step: it must read nothing but the model and the batch.
        report: is called with each log entry, about a hundred of them or one in 50 steps.
        checkpoint: a file that is written every half minute and at the end, and from which a training that was
            stopped goes on where it is there; None for none.

    Raises:
        MambaExportError: the loss stops being a number, or the checkpoint is damaged or another training's.
    """
    model = model.to(device).train()
    generator = torch.Generator(device).manual_seed(recipe.seed + 1)
    torch.manual_seed(recipe.seed + 2)  # of dropout and the like
    steps = _BatchStepper(model, tempered(loss, recipe.temperature), recipe, device)
    state = resume.State()
    if checkpoint is not None and checkpoint.exists():
        state = resume.read(checkpoint, model, steps.optimizer, generator, recipe)
    log_every = max(1, min(50, recipe.steps // 100))
    logged_at, begin = state.step, time.monotonic() - state.seconds
    saved_at = time.monotonic()
    progress = progress_of(state.step, state.seconds, recipe)
    old_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = recipe.tf32
    try:
        while progress < 1:
            batch = make_batch(recipe.batch, generator, min(progress, 1.0))
            steps.step(batch, learning_rate(state.step, progress, recipe))
            state.step += 1
            state.seconds = time.monotonic() - begin
            progress = progress_of(state.step, state.seconds, recipe)
            if state.step % log_every != 0 and progress < 1:
                continue
            mean = steps.read_loss() / (state.step - logged_at)
            logged_at = state.step
            if not math.isfinite(mean):
                raise MambaExportError(
                    f"the loss is {mean} at step {state.step}: use a smaller --lr"
                )
            state.seconds = time.monotonic() - begin
            entry = {
                "step": state.step,
                "seconds": round(state.seconds, 3),
                "progress": round(min(progress, 1.0), 4),
                "loss": round(mean, 5),
            }
            state.log.append(entry)
            report(entry)
            late = time.monotonic() - saved_at >= _CHECKPOINT_SECONDS
            if checkpoint is not None and (late or progress >= 1):
                resume.write(checkpoint, model, steps.optimizer, generator, recipe, state)
                saved_at = time.monotonic()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = old_tf32
    return TrainedTask(model.eval(), state.step, state.seconds, state.log)


def tempered(loss: Loss, temperature: float) -> Loss:
    """A loss of logits, the first of a model's results, that are divided by ``temperature``."""
    if temperature == 1:
        return loss
    return lambda model, batch: loss(_Divided(model, temperature), batch)


class _Divided(nn.Module):
    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, *inputs: Tensor) -> tuple[Any, ...]:
        logits, *rest = self.model(*inputs)
        return (logits / self.temperature, *rest)


class _BatchStepper:
    """Steps on batches, which are copied to where the graph of their shapes reads them."""

    def __init__(
        self, model: nn.Module, loss: Loss, recipe: TaskRecipe, device: torch.device
    ) -> None:
        self._static: dict[tuple[torch.Size, ...], Batch] = {}
        self._current: Batch = ()
        self._stepper = Stepper(
            lambda: loss(model, self._current),
            parameter_groups(model, recipe.weight_decay),
            device,
            recipe,
        )
        self.optimizer = self._stepper.optimizer
        self.read_loss = self._stepper.read_loss

    def step(self, batch: Batch, lr: float) -> None:
        """One step on ``batch`` at learning rate ``lr``."""
        shapes = tuple(one.shape for one in batch)
        if shapes not in self._static:
            self._static[shapes] = tuple(one.clone() for one in batch)
        self._current = self._static[shapes]
        for static, one in zip(self._current, batch, strict=True):
            static.copy_(one)
        self._stepper.step(lr, shapes)


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model with the initialisation of a seed, made on the CPU so that it is the same for every device."""
    torch.manual_seed(seed)
    return make()


def parameter_count(model: nn.Module) -> int:
    """How many numbers a model has learnt."""
    return sum(one.numel() for one in model.parameters())


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits (..., classes) and targets (...), in fp32."""
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
