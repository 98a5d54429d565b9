#!/usr/bin/env python3
"""Measure what a token costs against the length of the text, from a thousand tokens to a million.

\b
    python tools/run_cost.py --quick                                 # small, in half a minute: to see it work
    python tools/run_cost.py --record tools/records                  # this machine's CPU, 5 minutes
    python tools/run_cost.py --device cuda --record tools/records    # an NVIDIA GPU, 2 minutes

Exported Mamba and Mamba-2 and a Transformer of the same size read and write in ONNX Runtime; on a GPU
mamba_ssm does, too, where it is installed. Then tokens per second at batch 1 to
128, and the scan by itself beside plain PyTorch's. Weights are random: what they say does not matter here.
On a GPU the models are of 130 million parameters, on a CPU of 2 million.

Every model is measured in a process of its own, on a CPU every length: its memory is its own, and so is a
crash. A series goes on until the next text would take longer than its limit or memory is out; the record says
which. The record is written after every model. Leave the machine to it: nothing else should run.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.command_options import (
    CommitOption,
    DeviceOption,
    NoteOption,
    record_option,
)
from mamba_export.cli import run_app
from mamba_export.errors import MambaExportError
from mamba_export.printing import as_text

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


@app.command(help=__doc__)
def main(
    device: DeviceOption = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="CPU: tiny models and short texts.")
    ] = False,
    longest: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="No longer text than this (1048576).")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Begin no further model after that time."),
    ] = None,
    graphs: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="GPU: traced graphs, from tools/benchmark.py --prepare FOLDER --size 130m,mamba2-130m.",
        ),
    ] = None,
    record: Annotated[Path | None, record_option("DATE-DEVICE-cost.json")] = None,
    commit: CommitOption = None,
    note: NoteOption = None,
) -> None:
    from bench import options

    on_gpu = options.one_of("--device", device, ("cpu", "cuda")) == "cuda"
    if on_gpu and quick:
        raise MambaExportError("--quick is of a CPU: leave --device cuda out")
    if graphs is not None and not on_gpu:
        raise MambaExportError("--graphs needs --device cuda")
    limit = options.seconds("--budget", budget)

    from bench import gpu, provenance
    from cost.plan import PLANS
    from cost.run import run
    from report.record import new_record

    if on_gpu:
        gpu.require_gpu()
    plan = PLANS["quick" if quick else device]
    if longest is not None:
        lengths = [one for one in plan.lengths if one <= longest]
        if not lengths:
            raise MambaExportError(f"--longest {longest}: the shortest text has {plan.lengths[0]}")
        scans = [one for one in plan.scan_lengths if one <= longest]
        plan = dataclasses.replace(plan, lengths=lengths, scan_lengths=scans)
    begun = new_record(
        "cost",
        "Cost against length",
        provenance.shown_command("tools/run_cost.py", sys.argv[1:]),
        device=gpu.gpu_name() if on_gpu else None,
        commit=commit if record is not None else "not asked for",
        quick=quick,
    )
    start = time.monotonic()

    def say(line: str) -> None:
        told = as_text(f"[{time.monotonic() - start:3.0f} s] {line}")
        console.print(told, highlight=False, soft_wrap=True)

    with tempfile.TemporaryDirectory() as temporary:
        run(
            plan, begun, Path(temporary), say, record=record, graphs=graphs, budget=limit, note=note
        )


if __name__ == "__main__":
    run_app(app)
