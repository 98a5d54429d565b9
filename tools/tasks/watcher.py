"""Watching a plant: each sample goes through the exported file, its error through the detector."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.record import write_whole
from mamba_export.errors import MambaExportError
from mamba_export.fields import Fields, ListOf, Number
from mamba_export.untrusted import read_json
from tasks.detector import STATISTICS, Detector, Limits
from tasks.forecast_program import OUTPUTS, Step
from tasks.plant import CHANNELS

LIMITS_FILE = "detector.json"
"""The detector's limits, in the checkpoint's folder and beside the exported file."""

_GAP = 20
"""Samples without an alarm that end an episode."""


def write_limits(folder: Path, limits: Limits) -> None:
    """Write detector.json."""
    content = {
        "scale": limits.scale.tolist(),
        "thresholds": dict(zip(STATISTICS, limits.thresholds.tolist(), strict=True)),
    }
    write_whole(folder / LIMITS_FILE, json.dumps(content, indent=1) + "\n")


def read_limits(folder: Path) -> Limits:
    """Read detector.json.

    Raises:
        MambaExportError: it is missing or damaged.
    """
    path = folder / LIMITS_FILE
    content = read_json(path, remedy="`python tools/plant.py export` writes it beside the file")
    fields = Fields(content, lambda problem: MambaExportError(f"{path}: {problem}"))
    rule = ListOf(Number(above=0), shortest=len(CHANNELS), longest=len(CHANNELS))
    thresholds = fields.inside("thresholds")
    return Limits(
        np.array(fields.take("scale", rule)),
        np.array([thresholds.take(name, rule) for name in STATISTICS]),
    )


@dataclass(frozen=True)
class Seen:
    """A sample that was watched.

    Args:
        index: of the sample.
        reading, forecast, deviation: (3,) what came, what was expected and how surely; the first sample's
            forecast is the sample.
        score: (3,) of each sensor, an alarm above 1.
        microseconds: that the forecast of the next sample took.
    """

    index: int
    reading: np.ndarray
    forecast: np.ndarray
    deviation: np.ndarray
    score: np.ndarray
    microseconds: float

    @property
    def is_alarm(self) -> bool:
        """Whether a sensor's score is above 1."""
        return bool(self.score.max() > 1)


@dataclass
class Episode:
    """Alarms that follow one another.

    Args:
        first, last: samples.
        sensor: of the largest score.
        score: the largest.
    """

    first: int
    last: int
    sensor: str
    score: float


@dataclass
class Watcher:
    """Watches one plant.

    Args:
        step: of the exported file, as ``open_step`` has it.
        limits: of the detector.
    """

    step: Step
    limits: Limits
    episodes: list[Episode] = field(default_factory=list)
    microseconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._detector = Detector(self.limits)
        self._next: tuple[np.ndarray, np.ndarray] | None = None

    def read(self, reading: np.ndarray) -> Seen:
        """Read a sample.

        Args:
            reading: (3,) fp32 in the units of ``CHANNELS``.

        Raises:
            MambaExportError: it is of another shape, or a value is not finite.
        """
        index = len(self.microseconds)
        reading = np.asarray(reading, np.float32)
        if reading.shape != (len(CHANNELS),):
            raise MambaExportError(
                f"sample {index} has shape {reading.shape}, expected ({len(CHANNELS)},): {', '.join(CHANNELS)}"
            )
        for name, value in zip(CHANNELS, reading.tolist(), strict=True):
            if not np.isfinite(value):
                raise MambaExportError(
                    f"sample {index}: {name} is {value}, expected a finite number"
                )
        forecast, deviation = self._next or (reading, self.limits.scale)
        score = np.zeros(len(CHANNELS))
        if self._next is not None:
            score = self._detector.score(((reading - forecast) / deviation)[None])[0]
        start = time.perf_counter()
        found = self.step(reading[None])
        microseconds = 1e6 * (time.perf_counter() - start)
        mean, deviation = (found[name][0].copy() for name in OUTPUTS)
        self._next = (mean, deviation)
        self.microseconds.append(microseconds)
        seen = Seen(index, reading, forecast, deviation, score, microseconds)
        if seen.is_alarm:
            self._note(seen)
        return seen

    def _note(self, seen: Seen) -> None:
        sensor, score = CHANNELS[int(seen.score.argmax())], float(seen.score.max())
        if not self.episodes or seen.index - self.episodes[-1].last > _GAP:
            self.episodes.append(Episode(seen.index, seen.index, sensor, score))
            return
        episode = self.episodes[-1]
        episode.last = seen.index
        if score > episode.score:
            episode.sensor, episode.score = sensor, score
