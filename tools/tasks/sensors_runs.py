"""What is measured of the plant's forecasters: time of a step, engines, a fault as it is seen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.streamer import OrtStreamer
from mamba_export.backends.registry import providers
from mamba_export.backends.tensorrt import BuildOptions, TrtSession, build
from mamba_export.backends.tensorrt.names import TENSORRT_RTX
from mamba_export.errors import MambaExportError
from tasks.detector import Limits, scores
from tasks.plant import CHANNELS, simulate
from tasks.plant_evaluation import FAULTY_SEED, Forecast, errors
from tasks.sensors_record import LABELS, Engine, Timing, Watched

_TURNS, _TIMED = 4, 500  # of a new signal and an old one, and their steps each time
_WARM = 100  # steps that are not timed


def open_each(folder: Path) -> dict[str, OrtSession]:
    """Sessions of an exported folder on each provider of ONNX Runtime that is here, by name; one CPU thread."""
    found = {}
    for name in providers():
        try:
            session = OrtSession(
                folder,
                providers=[f"{name.upper()}ExecutionProvider"],
                threads=1 if name == "cpu" else None,
            )
        except MambaExportError:  # it is not here
            continue
        kernels = "native" if session.native else "function bodies"
        found[f"ONNX Runtime {name.upper()}, {kernels}"] = session
    return found


def time_steps(session: OrtSession | TrtSession, backend: str, model: str, steps: int) -> Timing:
    """Time the first steps of a signal and those after ``steps`` others, by turns: a machine has busy times."""
    readings = simulate(1, 2000, seed=FAULTY_SEED).readings

    def run(streamer: Any, count: int) -> np.ndarray:
        times = np.empty(count)
        for index in range(count):
            sample = readings[:, index % readings.shape[1]]
            begin = time.perf_counter()
            streamer.step(sample)
            times[index] = time.perf_counter() - begin
        return 1e6 * times

    old = session.streamer()
    run(old, steps)
    early, late = [], []
    for _ in range(_TURNS):
        new = session.streamer()
        run(new, _WARM)
        early.append(run(new, min(steps, _TIMED)))
        run(old, _WARM)
        late.append(run(old, min(steps, _TIMED)))
    captured = None if isinstance(old, OrtStreamer) else old.is_captured
    return Timing(
        backend, LABELS[model], np.concatenate(early), np.concatenate(late), steps, captured
    )


def time_engines(folder: Path, steps: int) -> tuple[list[Engine], list[Timing]]:
    """Build an engine of single steps and short parts, of plugins and of function bodies, and time its steps.

    TensorRT-RTX builds them with no GPU. Its engines do not run on compute capability 9.0, the H100's.
    """
    engines, timings = [], []
    for plugin in (True, False):
        form = "plugins" if plugin else "function bodies"
        options = BuildOptions(
            runtime=TENSORRT_RTX.option, plugin=plugin, batch=(1, 1, 4), length=(1, 1, 256)
        )
        try:
            description = build(folder, options, force=True)
        except MambaExportError as error:
            engines.append(Engine(form, TENSORRT_RTX.title, None, f"not built: {error}"))
            continue
        runtime = f"{TENSORRT_RTX.title} {description.runtime_version}"
        try:
            timings.append(time_steps(TrtSession(folder), f"{runtime}, {form}", "mamba", steps))
            note = "built, and run"
        except MambaExportError as error:
            note = f"built, not run: {error}"
        megabytes = round(description.build["engine_bytes"] / 1e6, 2)
        engines.append(Engine(form, runtime, megabytes, note))
    return engines, timings


def watch_fault(
    forecasts: dict[str, Forecast], limits: dict[str, Limits], fault: str = "leak", sensor: int = 1
) -> Watched:
    """A fault as one sensor shows it, with the scores of each forecaster."""
    signal = simulate(1, 1024, seed=FAULTY_SEED, fault=fault)
    begin = int(signal.faulty[0].argmax())
    part = slice(max(begin - 150, 1), begin + 200)
    mean, _ = forecasts["mamba"](signal.readings)
    found = {
        name: scores(errors(forecast, signal.readings), limits[name])[0]
        for name, forecast in forecasts.items()
    }

    def short(values: np.ndarray) -> list[float]:
        return [float(f"{value:.6g}") for value in values]

    before = slice(
        part.start - 1, part.stop - 1
    )  # a forecast lies at the sample that it was made after
    return Watched(
        fault,
        CHANNELS[sensor],
        list(range(*part.indices(signal.readings.shape[1]))),
        short(signal.readings[0, part, sensor]),
        short(mean[0, before, sensor]),
        {name: short(values[before]) for name, values in found.items()},
    )
