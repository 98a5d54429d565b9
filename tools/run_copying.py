#!/usr/bin/env python3
"""Selective copying with the models of table 1 of arXiv:2312.00752, as a record: ``--help`` explains."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import torch

import train_task
from mamba_export import OrtSession
from mamba_export.cli import exit_with
from mamba_export.errors import MambaExportError
from mamba_export.untrusted import read_json
from report.command_line import begun, record_parser
from report.record import write_record
from tasks import copying
from tasks.copying_exported import (
    export_forms,
    load_trained,
    score,
    score_backends,
    score_reference,
)
from tasks.copying_models import PUBLISHED, SHIPPED, TASK
from tasks.copying_record import Backends, Found, completed
from tasks.output import RECORD_FILE
from training.command_line import choose_device, number

PROGRAM = "run_copying.py"
DESCRIPTION = """\
Train the models of table 1, export each in each of its forms, and record their accuracy: PyTorch's, that of the
exported files, and that of the shipped model on every backend that is here.

on a GPU, in about fifteen minutes:
  python tools/run_copying.py --record tools/records
models that are trained already, and which are kept for the next run:
  python tools/run_copying.py --record tools/records --trained out/copying
the shipped model alone, on every backend that is here:
  python tools/run_copying.py --record tools/records --models none
on a CPU, to see it work:
  python tools/run_copying.py --record out --quick
"""

LTI_TEST = 16
"""Sequences of the test of an exported LTI model: what turns S4D's scan takes a gigabyte for more at once."""
QUICK_MODELS = ("h3-s4", "mamba-s6")
QUICK = ["--length", "64", "--steps", "20", "--batch", "8", "--test", "16", "--device", "cpu"]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = record_parser(
        PROGRAM, DESCRIPTION, quick="two models, briefly, on a CPU: to see that it works"
    )
    text = "folder with a folder for each trained model; those that are missing are trained into it"
    parser.add_argument("--trained", type=Path, default=None, metavar="FOLDER", help=text)
    text = f"which to take, with commas, or none: the shipped one alone (default: all): {', '.join(PUBLISHED)}"
    parser.add_argument("--models", default=None, metavar="NAMES", help=text)
    text = "of training for each model that is not trained (default: 1.3)"
    parser.add_argument("--minutes", type=number(float, 0), default=1.3, metavar="X", help=text)
    text = "sequences of the test of exported files (default: 64)"
    parser.add_argument("--test", type=number(int, 1), default=64, metavar="X", help=text)
    text = "folder of the shipped model (default: models/selective-copying)"
    parser.add_argument("--shipped", type=Path, default=None, metavar="FOLDER", help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    return parser


def run(arguments: list[str]) -> None:
    """Make the record that ``arguments`` ask for; it is written again after each model.

    Raises:
        MambaExportError: something that the user can put right.
    """
    options = build_parser().parse_args(arguments)
    names = list(QUICK_MODELS if options.quick else PUBLISHED)
    if options.models is not None:
        names = [] if options.models == "none" else options.models.split(",")
    unknown = [name for name in names if name not in PUBLISHED]
    if unknown:
        raise MambaExportError(f"--models {unknown[0]}: give some of {', '.join(PUBLISHED)}")
    device = choose_device("cpu" if options.quick else options.device)
    record = begun(
        options,
        PROGRAM,
        arguments,
        "copying",
        "Selective copying",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    )
    root = Path(__file__).parents[1]
    shipped = options.shipped or root / "models" / TASK.name
    with tempfile.TemporaryDirectory() as scratch:
        home = options.trained or Path(scratch) / "trained"
        found: list[Found] = []
        backends: list[Backends] = []
        length = copying.LENGTH
        for name in names:
            folder = home / name
            if not (folder / RECORD_FILE).exists():
                train_task.run(_training(folder, name, options))
            one = Found(name, _training_record(folder / RECORD_FILE, name))
            length = one.record["length"]
            most = options.test if one.is_selective else min(options.test, LTI_TEST)
            count = min(most, one.record["test_sequences"])
            model = load_trained(folder, name)
            for form, exported in export_forms(model, Path(scratch) / name).items():
                part = {"part": None} if form == "convolution" else {}
                session = OrtSession(exported)
                one.scores[form] = score(session, count, length, batch=LTI_TEST, **part)
                print(f"{name}, exported, {form}: {one.scores[form].percent:.2f} %", flush=True)
            found.append(one)
            write_record(options.record, completed(record, found, backends, length))
        if (shipped / RECORD_FILE).exists():
            backends.append(_on_backends(shipped, Path(scratch), options.test, copying.LENGTH))
        elif (home / SHIPPED).exists():
            backends.append(_on_backends(home / SHIPPED, Path(scratch), options.test, length))
        path = write_record(options.record, completed(record, found, backends, length))
    print(path)


def _training_record(path: Path, name: str) -> dict[str, Any]:
    """A training.json. Raises MambaExportError where it is of something else."""
    record = read_json(path)
    if not isinstance(record, dict) or (record.get("task"), record.get("model")) != (
        TASK.name,
        name,
    ):
        raise MambaExportError(f"{path} is not of {TASK.name} with {name}: give another --trained")
    return record


def _training(folder: Path, name: str, options: argparse.Namespace) -> list[str]:
    """Arguments of ``tools/train_task.py`` for a model."""
    arguments = [TASK.name, "--model", name, "--out", str(folder)]
    if options.quick:
        return [*arguments, *QUICK]
    limits = ["--max-minutes", str(options.minutes), "--steps", "1000000"]
    graph = ["--cuda-graph"] if choose_device(options.device).type == "cuda" else []
    return [*arguments, *limits, *graph, "--device", options.device]


def _on_backends(model: Path, scratch: Path, count: int, length: int) -> Backends:
    loaded = load_trained(model, SHIPPED)
    [exported] = export_forms(loaded, scratch / "shipped").values()
    scores, missing = score_backends(exported, count, length)
    scores = {"PyTorch, reference": score_reference(loaded, count, length), **scores}
    for name, one in scores.items():
        print(f"shipped, {name}: {one.right} of {one.of}", flush=True)
    return Backends(length, scores, missing)


def main() -> NoReturn:
    """Run and end the process."""
    exit_with(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
