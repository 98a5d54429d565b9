"""The record of streaming sensors: forecasters side by side, what faults they find, what a step costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from report.record import Axis, Claim, Plot, Record, Series, Table
from tasks.detector import FALSE_ALARMS
from tasks.plant import CHANNELS, FAULTS
from tasks.plant_evaluation import Evaluation, Sizes

LABELS = {
    "mamba": "Mamba",
    "lti": "LTI (S4D in Mamba's block)",
    "naive": "last value",
}
"""Forecasters by their names in a checkpoint; "naive" repeats the last reading."""


@dataclass(frozen=True)
class Timing:
    """What a step took.

    Args:
        backend, model: for people.
        early, late: microseconds of each step, at the beginning of a signal and after many.
        steps: how many there were before the late ones.
        captured: whether a step was one CUDA graph; None on a CPU.
    """

    backend: str
    model: str
    early: np.ndarray
    late: np.ndarray
    steps: int
    captured: bool | None = None


@dataclass(frozen=True)
class Engine:
    """An engine that was built.

    Args:
        form: with plugins or of function bodies.
        runtime: that built it.
        megabytes: its size; None where it was not built.
        note: why it was not, or was not run.
    """

    form: str
    runtime: str
    megabytes: float | None
    note: str


@dataclass(frozen=True)
class Watched:
    """A signal with a fault, as one sensor shows it.

    Args:
        fault, sensor: which.
        seconds, readings, forecasts: of the part that is shown.
        scores: by forecaster.
    """

    fault: str
    sensor: str
    seconds: Sequence[int]
    readings: Sequence[float]
    forecasts: Sequence[float]
    scores: dict[str, Sequence[float]]


@dataclass
class Found:
    """Everything that was found, by forecaster where it is of one."""

    evaluations: dict[str, Evaluation] = dataclasses.field(default_factory=dict)
    parameters: dict[str, int] = dataclasses.field(default_factory=dict)
    timings: list[Timing] = dataclasses.field(default_factory=list)
    engines: list[Engine] = dataclasses.field(default_factory=list)
    watched: Watched | None = None


def completed(record: Record, found: Found, sizes: Sizes) -> Record:
    """A record with everything that was found."""
    tables = [_forecasts(found, sizes), _faults(found, sizes)]
    if found.timings:
        tables.append(_steps(found.timings))
    if found.engines:
        tables.append(_engines(found.engines))
    return dataclasses.replace(
        record,
        notes=[
            "The plant is simulated (tools/tasks/plant.py, with its physics): a ventilated climate chamber, a "
            "sample a second, drifting ambient and sensors, five phases of a recipe. Forecasters learn from "
            "sound plants alone.",
            "An alarm is an error, a running mean of errors or a running mean square of errors beyond a "
            f"threshold, chosen on sound plants that are in no other figure: {FALSE_ALARMS:.2%} of the samples "
            "may exceed one.",
        ],
        tables=tables,
        plots=_plots(found.watched),
        claims=_claims(found),
    )


def _forecasts(found: Found, sizes: Sizes) -> Table:
    plants, samples = sizes.sound
    rows = [
        [
            LABELS[name],
            found.parameters.get(name),
            *(float(f"{value:.3g}") for value in one.error),
            round(one.alarms, 1),
        ]
        for name, one in found.evaluations.items()
    ]
    return Table(
        "Forecasts of the next sample, sound plants",
        [
            "forecaster",
            "parameters",
            *(f"error, {name.replace('_', ' ')}" for name in CHANNELS),
            "false alarms in a million samples",
        ],
        rows,
        f"Root mean square over {plants} plants of {samples:,} samples. Exported files.",
    )


def _faults(found: Found, sizes: Sizes) -> Table:
    columns = ["fault", "what happens"]
    for name in found.evaluations:
        columns += [f"{LABELS[name]}: found, %", "delay, s", "by chance, %"]
    rows = []
    for fault, kind in FAULTS.items():
        row: list[str | float | None] = [fault, kind.about]
        for one in found.evaluations.values():
            result = one.found[fault]
            row += [round(100 * result.found, 1), result.delay, round(100 * result.by_chance, 1)]
        rows.append(row)
    row = ["all", "mean"]
    for one in found.evaluations.values():
        row += [_mean_found(one), None, None]
    rows.append(row)
    plants, samples = sizes.faulty
    return Table(
        "Faults found",
        columns,
        rows,
        f"{plants} plants of {samples:,} samples for each kind, one fault in each. Found: an alarm while the "
        "fault is there; delay: median from its beginning; by chance: an alarm in a window as long before it.",
    )


def _mean_found(one: Evaluation) -> float:
    return round(100 * float(np.mean([result.found for result in one.found.values()])), 1)


def _steps(timings: Sequence[Timing]) -> Table:
    rows: list[list[str | float]] = []
    for one in timings:
        graph = {None: "", True: "one CUDA graph", False: "not captured"}[one.captured]
        early, slow, late = (
            round(float(value), 1)
            for value in (
                np.median(one.early),
                np.percentile(one.early, 99),
                np.median(one.late),
            )
        )
        rows.append([one.backend, one.model, early, slow, late, one.steps, graph])
    return Table(
        "Time of a step, one sample of one plant, state in and out",
        ["backend", "model", "median, us", "99th percentile, us", "median later, us", "steps before", "GPU"],
        rows,
        "From a sample in the host's memory to a forecast in the host's memory, OrtSession.streamer(). CPU: "
        "one thread. The LTI model's file works the powers of its state matrix out at every call, and its "
        "layers are single nodes; Mamba's are one MambaLayer each.",
    )  # fmt: skip


def _engines(engines: Sequence[Engine]) -> Table:
    return Table(
        "TensorRT engines",
        ["form", "runtime", "MB", "state"],
        [[one.form, one.runtime, one.megabytes, one.note] for one in engines],
    )


def _plots(watched: Watched | None) -> list[Plot]:
    if watched is None:
        return []
    seconds = list(watched.seconds)
    return [
        Plot(
            f"A fault ({watched.fault}): the sensor and what Mamba expects of it",
            Axis("seconds"),
            Axis(watched.sensor.replace("_", ", ")),
            [
                Series("reading", seconds, list(watched.readings)),
                Series("forecast", seconds, list(watched.forecasts), "dashed"),
            ],
        ),
        Plot(
            "The same: score, an alarm above 1",
            Axis("seconds"),
            Axis("score"),
            [
                *(
                    Series(LABELS[name], seconds, list(scores))
                    for name, scores in watched.scores.items()
                ),
                Series("threshold", [seconds[0], seconds[-1]], [1.0, 1.0], "dashed"),
            ],
        ),
    ]


def _claims(found: Found) -> list[Claim]:
    claims = []
    if {"mamba", "lti", "naive"} <= set(found.evaluations):
        mamba, lti, naive = (found.evaluations[name] for name in ("mamba", "lti", "naive"))
        words = ", ".join(
            f"{LABELS[name]} {_mean_found(found.evaluations[name])} %"
            for name in ("mamba", "lti", "naive")
        )
        closer = ", ".join(
            f"{100 * (1 - one / other):.1f} %"
            for one, other in zip(mamba.error, lti.error, strict=True)
        )
        claims = [
            Claim(
                "Mamba's failing forecasts find more faults than the last value's do",
                None,
                words,
                _mean_found(mamba) > _mean_found(naive),
                headline=True,
            ),
            Claim(
                "Mamba finds at least as many faults as an LTI model of its size",
                None,
                words,
                _mean_found(mamba) >= _mean_found(lti),
            ),
            Claim(
                "Mamba's forecasts of each sensor are closer than the LTI model's",
                None,
                closer,
                all(one < other for one, other in zip(mamba.error, lti.error, strict=True)),
            ),
        ]
    for one in found.timings:
        if one.model != LABELS["mamba"] or not one.backend.endswith("native"):
            continue
        early, late = float(np.median(one.early)), float(np.median(one.late))
        claims.append(
            Claim(
                f"{one.backend}: a step after {one.steps:,} steps costs what the first ones cost",
                None,
                f"{early:.1f} us, then {late:.1f} us",
                late < 1.2 * early,
                headline=True,
            )
        )
    return claims
