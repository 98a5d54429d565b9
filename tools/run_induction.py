#!/usr/bin/env python3
"""Stream the induction task through exported files, from 64 tokens to a million: ``--help`` explains."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from bench import gpu
from mamba_export import OrtSession
from mamba_export.cli import exit_with
from mamba_export.errors import MambaExportError
from report.command_line import begun, record_parser
from report.record import write_record
from tasks.induction import LONGEST, SHORTEST
from tasks.induction_export import Exported, check_positions, export_checkpoint
from tasks.induction_findings import findings
from tasks.streaming import Reading, read_lengths
from training.command_line import choose_device, number

PROGRAM = "run_induction.py"
DESCRIPTION = """\
Export trained models of the induction task, and let the files read sequences of any length in
parts, the state carried from part to part. Says the accuracy, the time and the memory at each
length. A model with a cache goes on until memory or --seconds end it.

  python tools/run_induction.py
  python tools/run_induction.py --model models/induction-heads --lengths 64,4096 --device cpu
"""
ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("models/induction-heads", "models/induction-heads-attention")
LENGTHS = tuple(1 << power for power in range(6, 21))
QUICK = (64, 256, 4096)


def _lengths(text: str) -> tuple[int, ...]:
    one = number(int, SHORTEST, LONGEST)
    return tuple(sorted({one(word) for word in text.split(",")}))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = record_parser(
        PROGRAM,
        DESCRIPTION,
        quick="short lengths and few sequences: to see that it works",
        needs_record=False,
    )
    text = "a trained model; several times for several (default: those that ship)"
    parser.add_argument("--model", type=Path, action="append", metavar="FOLDER", help=text)
    text = f"tokens a sequence, as 64,4096 (default: {LENGTHS[0]} to {LENGTHS[-1]}, doubling)"
    parser.add_argument("--lengths", type=_lengths, default=None, metavar="X,X", help=text)
    text = "tokens read at a length, in 8 to 512 sequences of it (default: 2^22, on a GPU 2^26)"
    parser.add_argument("--tokens", type=number(int, 1), default=None, metavar="X", help=text)
    text = "tokens a part (default: 8192)"
    parser.add_argument("--part", type=number(int, 1), default=8192, metavar="X", help=text)
    text = "a length that takes a model with a cache longer ends its readings (default: 60)"
    parser.add_argument("--seconds", type=number(float, 0), default=60.0, metavar="X", help=text)
    text = "of the exported files (default: fp32)"
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32", help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    return parser


def show(name: str, reading: Reading) -> None:
    """Print what one length gave."""
    if reading.accuracy is None:
        found = reading.stopped
    else:
        found = (
            f"accuracy {reading.accuracy:6.2f} %  {reading.seconds:7.2f} s  "
            f"{reading.tokens_per_second:12,.0f} tokens/s"
        )
    print(
        f"{name}  {reading.length:9,} tokens x {reading.sequences:4d}  {found}  "
        f"state {reading.state_bytes:,} bytes  peak {reading.peak_bytes / 1e6:,.0f} MB"
        + (f"  device {reading.device_bytes / 1e6:,.0f} MB" if reading.device_bytes else ""),
        flush=True,
    )


def run(arguments: list[str]) -> None:
    """Stream as ``arguments`` say.

    Raises:
        MambaExportError: something that the user can put right.
    """
    options = build_parser().parse_args(arguments)
    lengths = options.lengths or (QUICK if options.quick else LENGTHS)
    on_gpu = choose_device(options.device).type == "cuda"
    tokens = options.tokens or (1 << 15 if options.quick else 1 << 26 if on_gpu else 1 << 22)
    folders = options.model or [ROOT / one for one in SHIPPED]
    found: list[tuple[Exported, list[Reading]]] = []
    record = begun(
        options,
        PROGRAM,
        arguments,
        "induction",
        "Induction heads: accuracy against length",
        device=gpu.gpu_name() if on_gpu else None,
    )
    for folder in folders:
        check_positions(folder, max(lengths))
    with tempfile.TemporaryDirectory() as place:
        models = [
            export_checkpoint(folder, Path(place) / str(index), options.dtype)
            for index, folder in enumerate(folders)
        ]
        for model in models:
            session = OrtSession(
                model.folder, providers=None if on_gpu else ["CPUExecutionProvider"]
            )
            if on_gpu and session.provider != "CUDAExecutionProvider":
                raise MambaExportError(
                    "--device cuda: this ONNX Runtime has no CUDA: install onnxruntime-gpu"
                )
            readings: list[Reading] = []
            found.append((model, readings))
            for reading in read_lengths(
                session,
                lengths,
                tokens=tokens,
                part=options.part,
                scores=1 << (30 if on_gpu else 26),
                seconds=options.seconds,
                device_bytes=gpu.used_bytes if on_gpu else None,
            ):
                readings.append(reading)
                show(model.name, reading)
                if options.record is not None:
                    write_record(options.record, replace(record, **findings(found, options)))


def main() -> NoReturn:
    """Run and end the process."""
    exit_with(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
