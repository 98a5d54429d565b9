#!/usr/bin/env python3
"""The worked examples of DNA-like and audio-like inputs, as a record: ``--help`` explains."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.cli import exit_with
from report.command_line import begun, record_parser
from report.record import Claim, Record, Table, write_record
from tasks import audio_tones, dna_islands
from tasks.labeller import export_labeller, file_logits, load_labeller
from tasks.task import Task
from tasks.trainer import parameter_count

PROGRAM = "run_labellers.py"
DESCRIPTION = """\
Export a shipped model that labels every step of a sequence, and record what the exported file tells
right beside the best known method, read whole and in pieces, and what a step costs.

  python tools/run_labellers.py dna --record tools/records
  python tools/run_labellers.py audio --record tools/records
to see it work:
  python tools/run_labellers.py dna --record out --quick
"""

COUNT, LENGTH = 256, 2048
QUICK_COUNT, QUICK_LENGTH = 16, 256
PIECES = (LENGTH, 37)
"""Steps that are read at once: all of them, and a length that divides nothing."""
STEPS = 2000
MODELS = Path(__file__).parents[1] / "models"


@dataclass(frozen=True)
class Example:
    """What is asked of a task's exported file.

    Args:
        task: the task.
        figures: names of what is told, with units; the first is the claim's.
        simulate: (sequences, steps, seed) -> features and labels.
        judge: (logits, labels) -> a value for each of ``figures``.
        peer: the name of the method that stands beside it.
        judge_peer: (features, labels) -> the same of the peer.
        margin: how far the first figure may be behind the peer's for the claim to hold.
        claim: the claim.
    """

    task: Task
    figures: tuple[str, ...]
    simulate: Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]
    judge: Callable[[np.ndarray, np.ndarray], tuple[float, ...]]
    peer: str
    judge_peer: Callable[[np.ndarray, np.ndarray], tuple[float, ...]]
    margin: float
    claim: str


def _dna_data(count: int, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    bases, inside = dna_islands.simulate(count, steps, seed)
    return dna_islands.one_hot(bases), inside


def _dna_judge(logits: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    odds = logits[..., 1].astype(np.float64) - logits[..., 0]
    bits, right = dna_islands.bits_and_accuracy(inside, 1 / (1 + np.exp(-odds)))
    return right, bits


def _dna_best(features: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    belief = dna_islands.forward_algorithm(features.argmax(-1))
    bits, right = dna_islands.bits_and_accuracy(inside, belief)
    return right, bits


def _share(found: np.ndarray, labels: np.ndarray) -> tuple[float]:
    return (100 * float((found == labels).mean()),)


EXAMPLES = {
    "dna": Example(
        dna_islands.TASK,
        ("bases told right, %", "cross entropy, bits a base"),
        _dna_data,
        _dna_judge,
        "forward algorithm, which knows the model that made the bases",
        _dna_best,
        1.0,
        "Mamba tells CpG islands within 1 % of the best that is possible, bases told right, %",
    ),
    "audio": Example(
        audio_tones.TASK,
        ("frames told right, %",),
        audio_tones.simulate,
        lambda logits, labels: _share(logits.argmax(-1), labels),
        "Goertzel bank, its window and threshold set on training data",
        lambda samples, labels: _share(
            audio_tones.goertzel_labels(samples, *audio_tones.best_goertzel()), labels
        ),
        0.0,
        "Mamba tells keys from raw samples at least as well as a Goertzel bank, frames told right, %",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = record_parser(
        PROGRAM, DESCRIPTION, quick="few and short sequences: to see that it works"
    )
    parser.add_argument("example", choices=tuple(EXAMPLES), help="dna or audio")
    text = "folder of the trained model (default: the shipped one)"
    parser.add_argument("--model", type=Path, default=None, metavar="FOLDER", help=text)
    return parser


def microseconds_a_step(session: OrtSession, features: np.ndarray) -> tuple[float, float]:
    """Median and 99th percentile of one step after another of one sequence, states carried."""
    step = session.streamer().step
    times = []
    for index in range(STEPS):
        sample = features[:1, index % features.shape[1]]
        start = time.perf_counter()
        step(sample)
        times.append(1e6 * (time.perf_counter() - start))
    return float(np.median(times)), float(np.percentile(times, 99))


def measured(record: Record, example: Example, model: Path, count: int, steps: int) -> Record:
    """The record with what the exported file of a trained model does."""
    labeller = load_labeller(model)
    features, labels = example.simulate(count, steps, dna_islands.TEST_SEED)
    rows: list[list[str | float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = export_labeller(labeller, Path(scratch) / "exported")
        session = OrtSession(folder)
        for piece in PIECES:
            found = example.judge(file_logits(session, features, piece), labels)
            how = "whole" if piece == LENGTH else f"in pieces of {piece} steps, state carried"
            rows.append([f"Mamba, exported file, read {how}", *found])
        median, late = microseconds_a_step(session, features)
    best = example.judge_peer(features, labels)
    rows.append([example.peer, *best])
    always = np.zeros_like(labels)
    rows.append(["always the first label", _share(always, labels)[0], *["-"] * (len(best) - 1)])
    ours = float(rows[0][1])
    holds = ours >= best[0] - example.margin
    return replace(
        record,
        notes=[
            "The inputs are synthetic, as the model's card says.",
            f"{parameter_count(labeller):,} parameters; {count} sequences of {steps:,} steps that no "
            "training saw.",
        ],
        tables=[
            Table("What is told right", ["method", *example.figures], rows),
            Table(
                "One step after another, one sequence, ONNX Runtime on a CPU",
                ["steps", "median, us", "99 % below, us"],
                [[STEPS, median, late]],
            ),
        ],
        claims=[
            Claim(f"{example.claim} (that: {best[0]:.2f})", None, round(ours, 2), holds),
        ],
    )


def run(arguments: list[str]) -> None:
    """Make the record that ``arguments`` ask for.

    Raises:
        MambaExportError: something that the user can put right.
    """
    options = build_parser().parse_args(arguments)
    example = EXAMPLES[options.example]
    record = begun(options, PROGRAM, arguments, options.example, example.task.title)
    model = options.model or MODELS / example.task.name
    sizes = (QUICK_COUNT, QUICK_LENGTH) if options.quick else (COUNT, LENGTH)
    print(f"{model}: exporting and reading {sizes[0]} sequences of {sizes[1]:,} steps", flush=True)
    done = measured(record, example, model, *sizes)
    for table in done.tables:
        for row in table.rows:
            print("  ".join(str(cell) for cell in row))
    print(write_record(options.record, done))


def main() -> NoReturn:
    """Run and end the process."""
    exit_with(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
