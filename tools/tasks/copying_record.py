"""The record of selective copying: table 1 with published beside ours, and what each backend gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from report.record import Axis, Claim, Plot, Record, Series, Table
from tasks import copying
from tasks.copying_exported import Score
from tasks.copying_models import PUBLISHED, SHIPPED

SOURCE = "arXiv:2312.00752, table 1"
BLOCKS = {"ungated": "no gate", "h3": "H3", "mamba": "Mamba"}
MIXERS = {"s4": "S4 (S4D)", "s6": "S6", "hyena": "Hyena"}
SOLVED = 97.0
"""Percent: what table 1's least selective model has."""


@dataclass
class Found:
    """What was found of one model.

    Args:
        name: one of ``PUBLISHED``.
        record: its training.json.
        scores: of its exported forms.
    """

    name: str
    record: dict[str, Any]
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def is_selective(self) -> bool:
        """Whether its mixer is S6."""
        return self.name.endswith("-s6")

    @property
    def label(self) -> str:
        """For people."""
        block, mixer = self.name.split("-")
        return f"{BLOCKS[block]}, {MIXERS[mixer]}"


@dataclass(frozen=True)
class Backends:
    """What the shipped model gives on each backend, on the same examples.

    Args:
        length: of the examples, in tokens.
        scores: by backend.
        missing: the other backends, with the reason.
    """

    length: int
    scores: dict[str, Score]
    missing: dict[str, str]


def completed(
    record: Record, models: Sequence[Found], backends: Sequence[Backends], length: int
) -> Record:
    """A record with everything that was found.

    Args:
        record: without findings.
        models: those that are trained, in any order.
        backends: of the shipped model, for each length that was tried.
        length: of the training and of the models' test, in tokens.
    """
    ordered = sorted(models, key=lambda one: list(PUBLISHED).index(one.name))
    return dataclasses.replace(
        record,
        notes=[" ".join(copying.ABOUT.split()), *([_trainings(ordered)] if ordered else [])],
        tables=[
            *([_accuracies(ordered, length)] if ordered else []),
            *(_backends(one) for one in backends if one.scores),
        ],
        plots=[_beside_published(ordered, length), _curves(ordered)] if ordered else [],
        claims=[*_claims(ordered, length), *_same_everywhere(backends)],
    )


def _trainings(models: Sequence[Found]) -> str:
    devices = " and ".join(sorted({str(one.record["device"]) for one in models}))
    return (
        "Published: 400,000 steps at a constant learning rate of 1e-4, on sequences of 4,096 tokens from "
        "the start. Ours: as many steps as the minutes that the table names allow, so that no model is "
        f"trained to its end. Trained on: {devices}."
    )


def _accuracies(models: Sequence[Found], length: int) -> Table:
    forms = [
        form for form in ("recurrence", "convolution") if any(form in m.scores for m in models)
    ]
    rows = []
    for one in models:
        block, mixer = one.name.split("-")
        shares = [one.scores[form].percent if form in one.scores else None for form in forms]
        rows.append(
            [
                BLOCKS[block],
                MIXERS[mixer],
                "selective" if one.is_selective else "LTI",
                PUBLISHED[one.name],
                round(one.record["figures"][copying.ACCURACY], 2),
                *(None if share is None else round(share, 2) for share in shares),
                one.record["recipe"]["lr"],
                one.record["steps"],
                round(one.record["seconds"] / 60, 2),
                one.record["parameters"],
            ]
        )
    return Table(
        f"Accuracy at {length:,} tokens, %",
        [
            "block",
            "mixer",
            "dynamics",
            "published",
            "PyTorch",
            *(f"exported, {form}" for form in forms),
            "learning rate",
            "steps",
            "minutes",
            "parameters",
        ],
        rows,
        f"Two layers of width 64. PyTorch: {models[0].record['test_sequences'] if models else 0:,} held-out "
        f"sequences. Exported files: {_counted(models)}. The recurrence reads parts of 1,024 tokens with its "
        "state carried, Hyena's state being all of its inputs; the convolution reads the whole sequence.",
    )


def _counted(models: Sequence[Found]) -> str:
    sizes = {s.of // copying.DATA_TOKENS for one in models for s in one.scores.values()}
    return " or ".join(f"the first {size:,} of them" for size in sorted(sizes)) or "not run"


def _backends(found: Backends) -> Table:
    missing = "; ".join(f"{name}: {reason}" for name, reason in found.missing.items())
    return Table(
        f"The shipped model on every backend, {found.length:,} tokens",
        ["backend", "data tokens given right", "of", "accuracy, %"],
        [[name, one.right, one.of, round(one.percent, 4)] for name, one in found.scores.items()],
        f"Not here: {missing}." if missing else "",
    )


def _beside_published(models: Sequence[Found], length: int) -> Plot:
    places = list(range(len(models)))
    ours = [one.record["figures"][copying.ACCURACY] for one in models]
    return Plot(
        "Accuracy, published and ours",
        Axis("accuracy, %"),
        Axis("model", names=[one.label for one in models]),
        [
            Series("published", [PUBLISHED[one.name] for one in models], places, "points"),
            Series(f"ours, at {length:,} tokens", ours, places, "points"),
        ],
        SOURCE,
    )


def _curves(models: Sequence[Found]) -> Plot:
    return Plot(
        "Loss in training",
        Axis("share of the training"),
        Axis("cross entropy at the markers, nats"),
        [
            Series(
                one.label,
                [entry["progress"] for entry in _thinned(one.record["log"])],
                [entry["loss"] for entry in _thinned(one.record["log"])],
                "line" if one.is_selective else "dashed",
            )
            for one in models
        ],
        "Solid lines: selective. Sequences grow at 0.25, 0.5 and 0.75.",
    )


def _thinned(log: Sequence[dict[str, Any]], most: int = 100) -> list[dict[str, Any]]:
    step = -(-len(log) // most)
    return list(log[step - 1 :: step]) if log else []


def _claims(models: Sequence[Found], length: int) -> list[Claim]:
    claims = []
    for one in models:
        ours = round(one.record["figures"][copying.ACCURACY], 2)
        kind = "selective, solves it" if one.is_selective else "LTI, does not solve it"
        claims.append(
            Claim(
                f"{one.label} ({kind}): accuracy at {length:,} tokens, %",
                PUBLISHED[one.name],
                ours,
                (ours > SOLVED) is one.is_selective,
                SOURCE,
                headline=one.name in (SHIPPED, "mamba-s4"),
            )
        )
    return claims


def _same_everywhere(backends: Sequence[Backends]) -> list[Claim]:
    return [
        Claim(
            f"The shipped model gives as many tokens right on every backend, {one.length:,} tokens",
            None,
            ", ".join(sorted({f"{s.right:,} of {s.of:,}" for s in one.scores.values()})),
            len(set(one.scores.values())) == 1,
        )
        for one in backends
        if one.scores
    ]
