"""The task of forecasting a plant's sensors: sound plants to learn from, and others to judge by."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tasks.forecaster import MODELS, Forecaster, make_forecaster, save_forecaster
from tasks.plant import CHANNELS, simulate
from tasks.recipe import TaskRecipe
from tasks.task import Batch, MakeBatch, Task

PLANTS, SAMPLES = 512, 4096
"""Of the training: two million samples, 24 days of one plant."""
TRAINING_SEED, TEST_SEED = 1, 2
LENGTH = 256
IGNORED = 16
"""First forecasts of a window that the loss leaves out: nothing is known yet."""

ABOUT = f"""\
The sensors of a simulated plant (`tools/tasks/plant.py`: {", ".join(CHANNELS)}; a sample a second) are read one
sample after another, and the next sample is forecast: its mean and its standard deviation. Trained on
{PLANTS} sound plants of {SAMPLES:,} samples (seed {TRAINING_SEED}), by the likelihood of a normal distribution;
no fault is ever shown. A forecast that fails is what tells of a fault.
"""


@functools.cache
def _training(device: torch.device) -> Tensor:
    """(PLANTS, SAMPLES, 3) readings on a device."""
    return torch.from_numpy(simulate(PLANTS, SAMPLES, TRAINING_SEED).readings).to(device)


def batches(length: int) -> MakeBatch:
    """Windows of ``length`` forecasts and the reading after the last."""

    def make(batch: int, generator: torch.Generator, progress: float) -> Batch:
        device = generator.device
        readings = _training(device)
        plant = torch.randint(PLANTS, (batch, 1), generator=generator, device=device)
        start = torch.randint(SAMPLES - length, (batch, 1), generator=generator, device=device)
        return (readings[plant, start + torch.arange(length + 1, device=device)],)

    return make


def _surprise(model: nn.Module, window: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log likelihood (nats) and squared errors in usual changes, (batch, forecasts, 3) each."""
    forecast, deviation = model(window[:, :-1])
    off = (window[:, 1:] - forecast) / deviation
    assert isinstance(model, Forecaster)
    unit = model.change
    nats = 0.5 * off**2 + torch.log(deviation / unit) + 0.5 * math.log(2 * math.pi)
    return nats[:, IGNORED:], ((off * deviation / unit) ** 2)[:, IGNORED:]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean negative log likelihood of a sensor's next reading, in nats, its usual change being 1."""
    return _surprise(model, batch[0])[0].mean()


@torch.no_grad()
def evaluate(model: nn.Module, device: torch.device, count: int, length: int) -> dict[str, float]:
    """Figures on sound plants that no training saw."""
    assert isinstance(model, Forecaster)
    readings = torch.from_numpy(simulate(count, length + 1, TEST_SEED).readings).to(device)
    nats, squares = zip(*(_surprise(model, part) for part in readings.split(64)), strict=True)
    error = torch.cat(squares).mean((0, 1)).sqrt() * model.change
    figures = {"negative log likelihood, nats": torch.cat(nats).mean().item()}
    for name, value in zip(CHANNELS, error.tolist(), strict=True):
        figures[f"root mean square error, {name}"] = value
    return figures


def _maker(name: str) -> Callable[[], nn.Module]:
    return lambda: make_forecaster(name)


TASK = Task(
    name="plant-forecast",
    title="Forecasts of a plant's sensors",
    about=ABOUT,
    length=LENGTH,
    shortest=2 * IGNORED,
    models={name: _maker(name) for name in MODELS},
    batches=batches,
    loss=loss,
    evaluate=evaluate,
    save=save_forecaster,
    recipe=TaskRecipe(lr=4e-3, clip=1.0),
)
