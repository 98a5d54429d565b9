"""Faults from a forecast's errors: three statistics of them, each with a threshold that sound plants set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STATISTICS = ("sudden", "lasting", "spread")
"""Of the error of one sample, of their running mean, of the logarithm of their running mean square."""

MEMORY = 32.0
"""Samples that the running means remember."""

FALSE_ALARMS = 1e-4
"""Share of a sound plant's samples that may give an alarm, in equal parts for each statistic of each sensor."""

WARM_UP = 200
"""Samples at the start of a signal that give no alarm: forecaster and running means know nothing yet."""


@dataclass(frozen=True)
class Limits:
    """What a sound plant's errors are like.

    Args:
        scale: (3,) root mean square of each sensor's errors, in deviations of the forecast.
        thresholds: (statistics, 3), beyond which a statistic of a sensor is an alarm.
    """

    scale: np.ndarray
    thresholds: np.ndarray


class Detector:
    """Watches several signals, one sample of each at a time.

    Args:
        limits: of the forecaster; None to collect ``statistics`` for them.
        scale: (3,) that errors are divided by, where there are no limits yet.
    """

    def __init__(self, limits: Limits | None, scale: np.ndarray | float = 1.0) -> None:
        self._limits = limits
        self._scale = scale if limits is None else limits.scale
        self._keep = 1 - 1 / MEMORY
        self._mean: np.ndarray | None = None
        self._square: np.ndarray | None = None
        self._seen = 0

    def statistics(self, errors: np.ndarray) -> np.ndarray:
        """Read the errors of a sample.

        Args:
            errors: (plants, 3), reading less forecast, in deviations of the forecast.

        Returns:
            (plants, statistics, 3), none below 0.
        """
        scaled = np.asarray(errors, np.float64) / self._scale
        if self._mean is None or self._square is None:
            self._mean, self._square = np.zeros_like(scaled), np.ones_like(scaled)
        # One sample alone moves the running means by a bounded amount: it is the first statistic's business.
        bounded = np.clip(scaled, -4, 4)
        self._mean = self._keep * self._mean + (1 - self._keep) * bounded
        self._square = self._keep * self._square + (1 - self._keep) * bounded**2
        self._seen += 1
        spread = np.abs(np.log(np.maximum(self._square, 1e-6)))
        return np.stack([np.abs(scaled), np.abs(self._mean), spread], axis=1)

    def score(self, errors: np.ndarray) -> np.ndarray:
        """Read the errors of a sample; (plants, 3) of each sensor, an alarm above 1."""
        assert self._limits is not None
        found = (self.statistics(errors) / self._limits.thresholds).max(axis=1)
        return found if self._seen > WARM_UP else np.zeros_like(found)


def find_limits(errors: np.ndarray) -> Limits:
    """Limits from errors (plants, length, 3) of plants without faults, in deviations of the forecast."""
    kept = np.asarray(errors[:, WARM_UP:], np.float64)
    scale = np.sqrt((kept**2).mean((0, 1)))
    watcher = Detector(None, scale)
    found = np.stack([watcher.statistics(errors[:, i]) for i in range(errors.shape[1])])[WARM_UP:]
    share = FALSE_ALARMS / (len(STATISTICS) * errors.shape[2])
    return Limits(scale, np.quantile(found, 1 - share, axis=(0, 1)))


def scores(errors: np.ndarray, limits: Limits) -> np.ndarray:
    """(plants, length) the largest score of each sample, of errors (plants, length, 3)."""
    watcher = Detector(limits)
    found = [watcher.score(errors[:, i]).max(axis=1) for i in range(errors.shape[1])]
    return np.stack(found, axis=1)


@dataclass(frozen=True)
class Detection:
    """How well faults of one kind are found.

    Args:
        found: share of the faults that gave an alarm while they were there.
        delay: median of the samples from a found fault's beginning to its alarm; None where none was found.
        by_chance: share of windows as long, before the faults, that gave an alarm.
    """

    found: float
    delay: float | None
    by_chance: float


def detection(alarms: np.ndarray, faulty: np.ndarray) -> Detection:
    """What alarms (plants, length) found of faults (plants, length), one a plant."""
    delays: list[int] = []
    chances = 0
    for alarm, fault in zip(alarms, faulty, strict=True):
        inside = np.flatnonzero(fault)
        first = np.flatnonzero(alarm[inside])
        delays += first[:1].tolist()
        chances += bool(alarm[max(inside[0] - len(inside), 0) : inside[0]].any())
    delay = float(np.median(delays)) if delays else None
    return Detection(len(delays) / len(alarms), delay, chances / len(alarms))


def false_alarms(alarms: np.ndarray, skipped: int = WARM_UP) -> float:
    """Share of the samples (plants, length) of sound plants that give an alarm, after the warm-up."""
    return float(np.mean(alarms[:, skipped:]))
