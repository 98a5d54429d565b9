"""How well forecasters of a plant tell faults from what is normal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mamba_export.backends.onnxruntime.session import OrtSession
from tasks.detector import (
    WARM_UP,
    Detection,
    Limits,
    detection,
    false_alarms,
    find_limits,
    scores,
)
from tasks.forecast_program import OUTPUTS, check_forecaster
from tasks.plant import FAULTS, simulate

VALIDATION_SEED, SOUND_SEED, FAULTY_SEED = 3, 4, 5
"""Of the sound plants that set limits, the sound ones that alarms are counted on, and those with faults."""

_PART = 256  # samples a run
_BATCH = 64  # plants a run

Forecast = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Readings (plants, length, 3) -> of each but the last the forecast of the next and its deviation, (plants,
length - 1, 3) each."""


@dataclass(frozen=True)
class Sizes:
    """How much is simulated: plants and samples of each for the sound ones, and for each kind of fault."""

    sound: tuple[int, int] = (128, 4096)
    faulty: tuple[int, int] = (256, 1024)


@dataclass(frozen=True)
class Evaluation:
    """What a forecaster is worth.

    Args:
        error: root mean square of forecast errors of sound plants, of each sensor in its unit.
        alarms: false alarms in a million samples of sound plants.
        found: by kind of fault.
    """

    error: Sequence[float]
    alarms: float
    found: dict[str, Detection]


_plants = functools.cache(simulate)  # the same for every forecaster


def file_forecast(session: OrtSession) -> Forecast:
    """Forecasts of an exported file, which reads many plants at once. MambaExportError where it is none."""
    check_forecaster(session.metadata)

    def forecast(readings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [_of_batch(readings[i : i + _BATCH]) for i in range(0, len(readings), _BATCH)]
        means, deviations = zip(*parts, strict=True)
        return np.concatenate(means), np.concatenate(deviations)

    def _of_batch(readings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state = None
        means: list[np.ndarray] = []
        deviations: list[np.ndarray] = []
        last = readings.shape[1] - 1
        for start in range(0, last, _PART):
            found, state = session.run(readings[:, start : min(start + _PART, last)], state)
            for parts, name in zip((means, deviations), OUTPUTS, strict=True):
                parts.append(found[name])
        return np.concatenate(means, axis=1), np.concatenate(deviations, axis=1)

    return forecast


def last_value(readings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The forecast that repeats the last reading; the detector's limits know how far it is off."""
    return readings[:, :-1], np.ones_like(readings[:, :-1])


def errors(forecast: Forecast, readings: np.ndarray) -> np.ndarray:
    """(plants, length - 1, 3) errors in deviations: each forecast against the reading that followed it."""
    mean, deviation = forecast(readings)
    return np.asarray((readings[:, 1:] - mean) / deviation)


def limits_of(forecast: Forecast, sizes: Sizes) -> Limits:
    """The limits of a forecaster's detector, from sound plants."""
    readings = _plants(*sizes.sound, seed=VALIDATION_SEED).readings
    return find_limits(errors(forecast, readings))


def evaluate(forecast: Forecast, limits: Limits, sizes: Sizes) -> Evaluation:
    """Errors and alarms on sound plants, and each kind of fault; none of them set the limits."""
    sound = _plants(*sizes.sound, seed=SOUND_SEED).readings
    mean, deviation = forecast(sound)
    off = sound[:, 1:] - mean
    alarms = false_alarms(scores(off / deviation, limits) > 1)
    found = {}
    for fault in FAULTS:
        signal = _plants(*sizes.faulty, seed=FAULTY_SEED, fault=fault)
        alarm = scores(errors(forecast, signal.readings), limits) > 1
        found[fault] = detection(alarm, signal.faulty[:, 1:])
    error = np.sqrt((off[:, WARM_UP:].astype(np.float64) ** 2).mean((0, 1)))
    return Evaluation(error.tolist(), 1e6 * alarms, found)
