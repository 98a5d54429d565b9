#!/usr/bin/env python3
"""A simulated plant, and the exported Mamba that watches its sensors.

\b
    python tools/plant.py export models/plant-forecast -o out/plant-forecast
    python tools/plant.py watch out/plant-forecast --fault stuck --seed 7
    python tools/plant.py simulate -o plant.csv --fault stuck --samples 1200
    python tools/plant.py watch out/plant-forecast plant.csv --json

Exit code 0: done; 2: bad input.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.live import Live

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.cli import run_app
from mamba_export.errors import MambaExportError
from mamba_export.untrusted import open_file
from tasks.forecast_program import open_step
from tasks.live_view import LiveView
from tasks.plant import CHANNELS, FAULTS, PHASES, simulate
from tasks.plant_csv import read_samples, write_samples
from tasks.watcher import LIMITS_FILE, Watcher, read_limits, write_limits

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

FaultOption = Annotated[
    str | None, typer.Option(metavar="KIND", help=f"One of {', '.join(FAULTS)}; default: none.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of everything random.")]
SamplesOption = Annotated[int, typer.Option(min=1, help="Seconds that are simulated.")]


@app.command("simulate")
def simulate_command(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="CSV to write.")],
    fault: FaultOption = None,
    seed: SeedOption = 0,
    samples: SamplesOption = 1200,
) -> None:
    """Write the sensors of one plant as CSV."""
    signal = simulate(1, samples, seed, fault)
    write_samples(output, signal.readings[0])
    print(f"wrote {output}: {samples} samples{_told(signal.faulty[0], fault)}")


@app.command("export")
def export_command(
    checkpoint: Annotated[Path, typer.Argument(metavar="FOLDER", help="A trained forecaster.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="To write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an exported folder.")] = False,
) -> None:
    """Export a trained forecaster, states in and out, and the detector's limits beside it."""
    from tasks.forecaster import export_watched

    export_watched(checkpoint, output, force=force)
    print(f"wrote {output}")


@app.command("calibrate")
def calibrate_command(
    checkpoint: Annotated[Path, typer.Argument(metavar="FOLDER", help="A trained forecaster.")],
) -> None:
    """Set the detector's limits on sound plants, by the exported file, and write them into the folder."""
    from tasks.forecaster import export_forecaster, load_forecaster
    from tasks.plant_evaluation import Sizes, file_forecast, limits_of

    with tempfile.TemporaryDirectory() as scratch:
        folder = export_forecaster(load_forecaster(checkpoint), Path(scratch) / "out")
        write_limits(checkpoint, limits_of(file_forecast(OrtSession(folder)), Sizes()))
    print(f"wrote {checkpoint / LIMITS_FILE}")


@app.command("watch")
def watch_command(
    folder: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    samples_file: Annotated[
        Path | None, typer.Argument(metavar="[CSV]", help="Samples, or - for standard input.")
    ] = None,
    fault: FaultOption = None,
    seed: SeedOption = 7,
    samples: SamplesOption = 1000,
    rate: Annotated[
        float, typer.Option(min=0, help="Samples a second in a live view; 0: as they come.")
    ] = 200.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Watch a plant's sensors, a CSV's or simulated ones, one sample at a time; live in a terminal."""
    step = open_step(OrtSession(folder, threads=1))
    watcher = Watcher(step, read_limits(folder))
    truth: dict[str, Any] = {}
    notes: list[str] | None = None
    if samples_file is None:
        signal = simulate(1, samples, seed, fault)
        notes = [f"phase {PHASES[index].name}" for index in signal.phase[0]]
        truth = {"fault": fault, "faulty": _interval(signal.faulty[0])}
        source: Iterator[np.ndarray] = iter(signal.readings[0])
    elif fault is not None:
        raise MambaExportError("--fault is of a simulated plant: leave it or the CSV out")
    else:
        source = _from_csv(samples_file)
    console = Console()
    if console.is_terminal and not json_output:
        _watch_live(watcher, source, notes, console, rate if samples_file is None else 0.0)
    else:
        for sample in source:
            watcher.read(sample)
    if not watcher.microseconds:
        raise MambaExportError(f"{samples_file}: holds no sample")
    _print(watcher, truth, json_output)


def _from_csv(path: Path) -> Iterator[np.ndarray]:
    if str(path) == "-":
        yield from read_samples(sys.stdin, "standard input")
        return
    with open_file(path) as file:
        lines = (line.decode("utf-8-sig") for line in file)
        yield from read_samples(lines, str(path))


def _watch_live(
    watcher: Watcher,
    source: Iterator[np.ndarray],
    notes: list[str] | None,
    console: Console,
    rate: float,
) -> None:
    view = LiveView(unicode="utf" in (console.encoding or "").lower())
    begin = drawn = time.monotonic()
    with Live(console=console, auto_refresh=False) as live:
        for seen in map(watcher.read, source):
            view.add(seen)
            note = notes[seen.index] if notes else "samples as they come"
            ahead = (seen.index + 1) / rate - (time.monotonic() - begin) if rate else 0.0
            if ahead > 0:
                time.sleep(ahead)
            if time.monotonic() - drawn > 0.1 or seen.index == 0:
                live.update(view.render(seen, note), refresh=True)
                drawn = time.monotonic()
        if watcher.microseconds:
            live.update(view.render(seen, note), refresh=True)


def _print(watcher: Watcher, truth: dict[str, Any], json_output: bool) -> None:
    median, slow = (float(np.percentile(watcher.microseconds, share)) for share in (50, 99))
    if json_output:
        content = {
            "samples": len(watcher.microseconds),
            "alarms": [vars(one) for one in watcher.episodes],
            "microseconds": {"median": round(median, 2), "p99": round(slow, 2)},
            **truth,
        }
        print(json.dumps(content))
        return
    print(f"{len(watcher.microseconds)} samples of {', '.join(CHANNELS)}")
    for one in watcher.episodes:
        print(f"alarm: seconds {one.first} to {one.last}, {one.sensor} (score {one.score:.1f})")
    if not watcher.episodes:
        print("no alarm")
    if truth.get("faulty"):
        first, last = truth["faulty"]
        print(f"fault that was injected: {truth['fault']}, seconds {first} to {last}")
    print(f"a step of the exported file: median {median:.1f} us, 99 % below {slow:.1f} us")


def _interval(faulty: np.ndarray) -> list[int] | None:
    there = np.flatnonzero(faulty)
    return [int(there[0]), int(there[-1])] if len(there) else None


def _told(faulty: np.ndarray, fault: str | None) -> str:
    there = _interval(faulty)
    return f", {fault} from second {there[0]} to {there[1]}" if there else ""


if __name__ == "__main__":
    sys.exit(run_app(app))
