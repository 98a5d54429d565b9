#!/usr/bin/env python3
"""Exact zero-order hold for B beside Euler's rule, as a record: ``--help`` explains."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from mamba_export.cli import exit_with
from report.command_line import begun, record_parser
from report.record import Claim, write_record
from training import read_text, split_lines
from training.command_line import number
from zoh.reading import claims, read, tables
from zoh.scan import coefficient_difference, scan_plot

PROGRAM = "run_zoh.py"
DESCRIPTION = """\
How exact zero-order hold for B, (exp(dt A) - 1) / A B, differs from Euler's rule, dt B, as the step
grows; and what becomes of a model that was trained with the one and is read with the other: an exported
file of each.

on a CPU, in a minute:
  python tools/run_zoh.py --record tools/records
beside models of one's own, trained with "train_lm.py kjv.txt --exact-zoh" and without:
  python tools/run_zoh.py --record tools/records --text kjv.txt --model models/kjv-bytes out/zoh out/euler
to see that it works:
  python tools/run_zoh.py --record out --quick
"""

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "kjv-bytes"
SAMPLE = "held_out_sample.txt"  # of a shipped model: what it was not trained on
QUICK_BYTES = 400
POINTS, QUICK_POINTS = 41, 9


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = record_parser(PROGRAM, DESCRIPTION, quick="a short run, to see that it works")
    text = "folders of byte-level Mambas (default: models/kjv-bytes)"
    parser.add_argument(
        "--model", type=Path, nargs="+", default=[SHIPPED], metavar="FOLDER", help=text
    )
    text = f"what they were trained on; its held-out lines are read (default: the first one's {SAMPLE})"
    parser.add_argument("--text", type=Path, default=None, metavar="FILE", help=text)
    text = "bytes that are read, at most (default: 65536)"
    parser.add_argument("--bytes", type=number(int, 2), default=65536, metavar="X", help=text)
    return parser


def run(arguments: list[str]) -> None:
    """Make the record that ``arguments`` ask for.

    Raises:
        MambaExportError: something that the user can put right.
    """
    options = build_parser().parse_args(arguments)
    if options.text is None:
        text = read_text(options.model[0] / SAMPLE)
    else:
        text = split_lines(read_text(options.text)).held_out
    text = text[: min(options.bytes, QUICK_BYTES) if options.quick else options.bytes]
    record = begun(options, PROGRAM, arguments, "zoh", "Exact zero-order hold")
    excess = 100 * coefficient_difference(torch.tensor(0.1, dtype=torch.float64)).item()
    first = Claim(
        "weight of the input at dt |A| = 0.1: how much larger with dt B, %",
        "5 (dt |A| / 2)",
        round(excess, 2),
        abs(excess - 5) < 0.25,
        "first term of the series of (exp(x) - 1) / x",
    )
    plot = scan_plot(QUICK_POINTS if options.quick else POINTS)
    tokens = np.array([0, *text])  # token 0 stands before a text
    with tempfile.TemporaryDirectory() as scratch:
        readings = [read(folder, tokens, Path(scratch)) for folder in options.model]
    record = replace(
        record,
        plots=[plot],
        tables=tables(readings, len(text)),
        claims=[first, *claims(readings)],
    )
    print(write_record(options.record, record))


def main() -> NoReturn:
    """Run and end the process."""
    exit_with(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
