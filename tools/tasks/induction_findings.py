"""What the induction task's record says: tables, plots and claims of what was read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from report.record import Axis, Claim, Plot, Series, Table
from tasks.induction import CHANCE, LENGTH, LONGEST
from tasks.induction_export import Exported
from tasks.streaming import Reading

Found = Sequence[tuple[Exported, Sequence[Reading]]]

_PAPER = "arXiv:2312.00752, section 4.1.2 and table 11"
_SOLVED = 99.0
"""Percent from which on a length counts as solved."""


def findings(found: Found, options: argparse.Namespace) -> dict[str, Any]:
    """Fields of the record: tables, plots, claims and notes.

    Args:
        found: each model, and what it read, shortest first.
        options: of the command line.
    """
    return {
        "tables": [_table(model, readings) for model, readings in found],
        "plots": [_accuracies(found), _memory(found)],
        "claims": _claims(found),
        "notes": _notes(found, options),
    }


def _table(model: Exported, readings: Sequence[Reading]) -> Table:
    on_gpu = any(one.device_bytes is not None for one in readings)
    columns = [
        "tokens",
        "sequences",
        "accuracy, %",
        "seconds",
        "tokens/s",
        "state, bytes",
        "peak, MB",
    ]
    rows = []
    for one in readings:
        rest = [_megabytes(one.device_bytes)] if on_gpu else []
        done = one.accuracy is not None
        rows.append(
            [
                one.length,
                one.sequences,
                _rounded(one.accuracy),
                round(one.seconds, 2),
                round(one.tokens_per_second) if done else None,
                one.state_bytes,
                _megabytes(one.peak_bytes),
                *rest,
            ]
        )
    stopped = "".join(
        f" It ended at {one.length:,} tokens: {one.stopped}." for one in readings if one.stopped
    )
    return Table(
        f"{model.name}, {model.parameters:,} parameters, trained at {LENGTH} tokens",
        [*columns, *(["GPU memory in use, MB"] if on_gpu else [])],
        rows,
        "State of one sequence at the end; peak memory of the process while it read, the examples' making "
        "and PyTorch, which exported the file, included." + stopped,
    )


def _accuracies(found: Found) -> Plot:
    lengths = [one.length for _, readings in found for one in readings]
    series = [
        Series(model.name, [one.length for one in readings], [one.accuracy for one in readings])
        for model, readings in found
    ]
    edges = [min(lengths), max(lengths)]
    return Plot(
        "Accuracy against length",
        Axis("tokens of the sequence", "log2"),
        Axis("accuracy, %"),
        [
            *series,
            Series("guessing", edges, [round(CHANCE, 1)] * 2, "dashed"),
        ],
        f"Trained at {LENGTH} tokens. A line ends where memory or time ended the reading.",
    )


def _memory(found: Found) -> Plot:
    series = [
        Series(
            model.name,
            [one.length for one in readings],
            [one.state_bytes if one.accuracy is not None else None for one in readings],
        )
        for model, readings in found
    ]
    return Plot(
        "State of one sequence against length",
        Axis("tokens of the sequence", "log2"),
        Axis("bytes", "log"),
        series,
        "What is carried from a part of the sequence to the next.",
    )


def _claims(found: Found) -> list[Claim]:
    claims = []
    for model, readings in found:
        done = [one for one in readings if one.accuracy is not None]
        if not done:
            continue
        last = done[-1]
        accuracy = last.accuracy or 0.0
        if model.grows:
            solved = [one.length for one in done if (one.accuracy or 0.0) >= _SOLVED]
            claims.append(
                Claim(
                    "attention with rotary positions, same size: longest sequence that it solves, tokens",
                    "512 (no method but Mamba goes beyond twice the training's length)",
                    max(solved, default=0),
                    max(solved, default=0) <= 2 * LENGTH,
                    _PAPER,
                )
            )
            continue
        claims.append(
            Claim(
                f"Mamba, trained at {LENGTH} tokens: accuracy at {last.length:,} tokens, %",
                100 if last.length == LONGEST else None,
                round(accuracy, 2),
                accuracy >= _SOLVED,
                _PAPER if last.length == LONGEST else "",
                headline=True,
            )
        )
        sizes = {one.state_bytes for one in done}
        claims.append(
            Claim(
                f"Mamba: state that is carried, bytes a sequence, from {done[0].length:,} to "
                f"{last.length:,} tokens",
                "constant",
                ", ".join(f"{size:,}" for size in sorted(sizes)),
                len(sizes) == 1,
                _PAPER,
            )
        )
    return claims


def _notes(found: Found, options: argparse.Namespace) -> list[str]:
    notes = [
        f"Exported files of {options.dtype} in ONNX Runtime; sequences of a seed of their own are read in "
        f"parts of {options.part:,} tokens, the state carried from part to part.",
    ]
    if any(model.grows for model, _ in found):
        notes.append(
            "Attention is MatMul, Softmax, MatMul over all the keys so far, in parts that are shorter "
            f"the longer the sequence is; a length that takes more than {options.seconds:g} s ends it."
        )
    return notes


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _megabytes(value: int | None) -> float | None:
    return None if value is None else round(value / 1e6, 1)
