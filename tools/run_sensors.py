#!/usr/bin/env python3
"""Streaming sensors, the plant's forecasters side by side, as a record: ``--help`` explains."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.cli import exit_with
from report.command_line import begun, record_parser
from report.record import write_record
from tasks.forecaster import MODELS, export_forecaster, load_forecaster
from tasks.plant_evaluation import Forecast, Sizes, evaluate, file_forecast, last_value, limits_of
from tasks.plant_forecast import TASK
from tasks.sensors_record import Found, completed
from tasks.sensors_runs import open_each, time_engines, time_steps, watch_fault
from tasks.trainer import parameter_count

PROGRAM = "run_sensors.py"
DESCRIPTION = """\
Export the shipped forecasters, set each one's alarm limits on sound plants, and record what faults they find
beside a forecast that repeats the last value, what a step costs on every backend that is here, and the sizes of
engines.

in some minutes:
  python tools/run_sensors.py --record tools/records
to see it work:
  python tools/run_sensors.py --record out --quick
"""

STEPS, QUICK_STEPS = 100_000, 2_000
QUICK = Sizes((8, 1200), (16, 1024))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = record_parser(
        PROGRAM, DESCRIPTION, quick="few plants and steps, no engine: to see that it works"
    )
    text = "folder that holds the trained models' folders (default: models)"
    parser.add_argument("--models", type=Path, default=None, metavar="FOLDER", help=text)
    text = "name of the GPU, where one computes (default: this machine's processor)"
    parser.add_argument("--device", default=None, metavar="TEXT", help=text)
    return parser


def folder_of(models: Path, name: str) -> Path:
    """Where the trained model of a name lies: Mamba's is the task's shipped one."""
    return models / (TASK.name if name == "mamba" else f"{TASK.name}-{name}")


def run(arguments: list[str]) -> None:
    """Make the record that ``arguments`` ask for; it is written again after each part.

    Raises:
        MambaExportError: something that the user can put right.
    """
    options = build_parser().parse_args(arguments)
    record = begun(
        options, PROGRAM, arguments, "sensors", "Streaming sensors", device=options.device
    )
    models = options.models or Path(__file__).parents[1] / "models"
    sizes, steps = (QUICK, QUICK_STEPS) if options.quick else (Sizes(), STEPS)
    found = Found()
    forecasts: dict[str, Forecast] = {}
    limits = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in reversed(MODELS):
            forecaster = load_forecaster(folder_of(models, name))
            found.parameters[name] = parameter_count(forecaster)
            folder = export_forecaster(forecaster, Path(scratch) / name)
            sessions = open_each(folder)
            for backend, session in sessions.items():
                count = steps if name == "mamba" else steps // 20  # whose steps are slow
                found.timings.append(time_steps(session, backend, name, count))
            forecasts[name] = file_forecast(OrtSession(folder))
        if not options.quick:
            found.engines, timings = time_engines(Path(scratch) / "mamba", steps)
            found.timings += timings
        forecasts["naive"] = last_value
        for name, forecast in forecasts.items():
            limits[name] = limits_of(forecast, sizes)
            found.evaluations[name] = evaluate(forecast, limits[name], sizes)
            path = write_record(options.record, completed(record, found, sizes))
            print(f"{name}: evaluated", flush=True)
        found.watched = watch_fault(forecasts, limits)
        path = write_record(options.record, completed(record, found, sizes))
    print(path)


def main() -> NoReturn:
    """Run and end the process."""
    exit_with(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
