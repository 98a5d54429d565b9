"""How well forecasters of a plant tell faults from what is normal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mamba_export.backends.onnxruntime.session import OrtSession
from tasks.detector import (
    Detection,
    Limits,
    detection,
    false_alarms,
    find_limits,
    scores,
)
from tasks.plant import FAULTS, Signal, simulate

VALIDATION_SEED, SOUND_SEED, FAULTY_SEED = 3, 4, 5
"""Of the sound plants that set limits, the sound ones that alarms are counted on, and those with faults."""

_PART = 256  # samples a run
_BATCH = 64  # plants a run

Errors = Callable[[np.ndarray], np.ndarray]
"""Readings (plants, length, 3) -> errors (plants, length - 1, 3), in deviations of the forecast."""


@dataclass(frozen=True)
class Sizes:
    """How much is simulated: plants and samples of each for the sound ones, and for each kind of fault."""

    sound: tuple[int, int] = (128, 4096)
    faulty: tuple[int, int] = (256, 1024)


@dataclass(frozen=True)
class Evaluation:
    """What a forecaster is worth.

    Args:
        alarms: false alarms in a million samples of sound plants.
        found: by kind of fault.
    """

    alarms: float
    found: dict[str, Detection]


def file_errors(session: OrtSession) -> Errors:
    """Errors of an exported forecaster, which reads many plants at once."""

    def errors(readings: np.ndarray) -> np.ndarray:
        parts = [_of_batch(readings[i : i + _BATCH]) for i in range(0, len(readings), _BATCH)]
        return np.concatenate(parts)

    def _of_batch(readings: np.ndarray) -> np.ndarray:
        state, forecasts, deviations = None, [], []
        for start in range(0, readings.shape[1] - 1, _PART):
            part = readings[:, start : min(start + _PART, readings.shape[1] - 1)]
            found, state = session.run(part, state)
            forecasts.append(found["forecast"])
            deviations.append(found["deviation"])
        off = readings[:, 1:] - np.concatenate(forecasts, axis=1)
        return np.asarray(off / np.concatenate(deviations, axis=1))

    return errors


def naive_errors(readings: np.ndarray) -> np.ndarray:
    """Errors of the forecaster that repeats the last reading; the detector's limits know how large they are."""
    return np.diff(readings, axis=1)


def limits_of(errors: Errors, sizes: Sizes) -> Limits:
    """The limits of a forecaster's detector, from sound plants."""
    return find_limits(errors(simulate(*sizes.sound, seed=VALIDATION_SEED).readings))


def evaluate(errors: Errors, limits: Limits, sizes: Sizes) -> Evaluation:
    """Alarms on sound plants and on each kind of fault, none of which set the limits."""
    sound = simulate(*sizes.sound, seed=SOUND_SEED)
    alarms = false_alarms(_alarms(errors, limits, sound))
    found = {}
    for fault in FAULTS:
        signal = simulate(*sizes.faulty, seed=FAULTY_SEED, fault=fault)
        found[fault] = detection(_alarms(errors, limits, signal), signal.faulty[:, 1:])
    return Evaluation(1e6 * alarms, found)


def _alarms(errors: Errors, limits: Limits, signal: Signal) -> np.ndarray:
    return scores(errors(signal.readings), limits) > 1
