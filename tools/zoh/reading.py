"""Models that were trained with one discretisation of B, read with either: an exported file of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mamba_export import OrtSession, contract, export
from mamba_export.errors import MambaExportError
from mamba_export.export.contents import described
from mamba_export.folder.calls import calls
from mamba_export.folder.graph import open_graph
from mamba_export.folder.metadata import read_metadata
from mamba_export.models import Mamba, MambaConfig, MambaLM, checkpoints
from report.record import Claim, Table
from zoh.scan import coefficient_difference

RULES = {False: "dt B", True: "exact zero-order hold"}
"""Words for ``exact_zoh``."""
PART = 4096
"""Bytes of a call; the state is carried to the next."""
STEPS_SHOWN = 1024
"""Of the text, whose step sizes are told: each has d_inner times d_state of them."""
_LEAST = 1e-4
"""Divergence in bits per byte above which two models are not one: rounding alone stays below 1e-9."""


def log_probabilities(session: OrtSession, tokens: np.ndarray) -> np.ndarray:
    """(bytes, vocab_size) base-2 logarithms of what an exported file expects after each token but the last."""
    parts, state = [], None
    for start in range(0, len(tokens) - 1, PART):
        part = tokens[start : min(start + PART, len(tokens) - 1)]
        logits, state = session.run(part[None], state)
        shifted = logits[0].astype(np.float64)
        shifted -= shifted.max(-1, keepdims=True)
        parts.append((shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))) / math.log(2))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Export:
    """An exported file over a text.

    Args:
        nodes: of ours, for people.
        says: what its metadata says of the discretisation.
        expected: (bytes, vocab_size), base-2 logarithms.
        bits: (bytes,), of the bytes that came.
    """

    nodes: str
    says: str
    expected: np.ndarray
    bits: np.ndarray


@dataclass(frozen=True)
class Reading:
    """A model over a text, read with either rule.

    Args:
        name: of the model.
        trained: whether it was trained with exact zero-order hold.
        exports: of its weights, by ``exact_zoh``.
        steps: dt |A| of each layer, (steps, d_inner, d_state).
    """

    name: str
    trained: bool
    exports: dict[bool, Export]
    steps: list[Tensor]

    @property
    def own(self) -> Export:
        """The file of the rule that it was trained with."""
        return self.exports[self.trained]

    @property
    def other(self) -> Export:
        """The file of the other rule."""
        return self.exports[not self.trained]

    @property
    def divergence(self) -> float:
        """Of what the other file expects from what the own one does: bits per byte."""
        own, other = self.own.expected, self.other.expected
        return float((np.exp2(own) * (own - other)).sum(-1).mean())

    @property
    def same(self) -> float:
        """Share of the bytes where both find the same byte likeliest, in percent."""
        own, other = (one.expected.argmax(-1) for one in (self.own, self.other))
        return 100 * float((own == other).mean())

    @property
    def change(self) -> tuple[float, float]:
        """Bits per byte that the other file needs more, and the standard error of that."""
        change = self.other.bits - self.own.bits
        return float(change.mean()), float(change.std() / math.sqrt(len(change)))


def read(folder: Path, tokens: np.ndarray, scratch: Path) -> Reading:
    """A byte-level Mamba over a text, exported with either rule.

    Args:
        folder: its checkpoint.
        tokens: of the text, with the token that stands before it.
        scratch: an existing folder for the exports.

    Raises:
        MambaExportError: the checkpoint is not of a Mamba, or cannot be read.
    """
    model = checkpoints.load(folder).model
    if not isinstance(model.config, MambaConfig):
        raise MambaExportError(f"{folder}: is of {model.config.mixer}, expected a model of mamba")
    exports = {}
    for rule in RULES:
        twin = MambaLM(model.config.replace(exact_zoh=rule)).eval()
        twin.load_state_dict(model.state_dict())
        out = export(twin, scratch / f"{folder.name}-{rule}")
        graph = open_graph(out / contract.MODEL_FILE, error=MambaExportError)
        nodes = described({call.name: count for call, count in calls(graph).items()})
        says = ", ".join(read_metadata(out).discretization or ())
        expected = log_probabilities(OrtSession(out), tokens)
        bits = -expected[np.arange(len(expected)), tokens[1:]]
        exports[rule] = Export(nodes, says, expected, bits)
    steps = step_sizes(model, torch.from_numpy(tokens)[None, :STEPS_SHOWN])
    return Reading(folder.name, model.config.exact_zoh, exports, steps)


@torch.no_grad()
def step_sizes(model: MambaLM, tokens: Tensor) -> list[Tensor]:
    """dt |A| of each layer while a text is read: (steps, d_inner, d_state)."""
    found: list[Tensor] = []

    def note(block: Mamba, projected: Tensor) -> None:
        dt = block.dt_proj(projected[0, :, : block.config.rank])
        found.append(torch.nn.functional.softplus(dt)[..., None] * torch.exp(block.A_log))

    hooks = [
        block.x_proj.register_forward_hook(lambda _, __, out, block=block: note(block, out))
        for block in model.backbone.mixers
        if isinstance(block, Mamba)
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return found


def steps_table(sizes: Sequence[Tensor]) -> Table:
    """How large the steps of a model's layers are, and what that makes of the input's weight."""
    rows = []
    for index, x in enumerate(sizes):
        quantiles = [x.flatten().double().quantile(q).item() for q in (0.1, 0.5, 0.9, 0.99)]
        excess = coefficient_difference(torch.tensor(quantiles[1:3], dtype=torch.float64)).tolist()
        rows.append(
            [index, *(round(one, 4) for one in quantiles), *(round(100 * e, 1) for e in excess)]
        )
    return Table(
        "Steps of the model's layers, dt |A| over text, channels and states",
        ["layer", "10 %", "median", "90 %", "99 %", "dt over exact, median, %", "at 90 %, %"],
        rows,
        "The last two columns: by how much dt exceeds what exact zero-order hold would give the input there.",
    )


def tables(readings: Sequence[Reading], count: int) -> list[Table]:
    """What the files are, bits per byte of each model with each rule, and the steps of the first model."""
    first = readings[0]
    return [
        Table(
            f"Exports of {first.name}'s weights",
            ["B", "nodes", "discretization in mamba_export.json"],
            [[RULES[rule], one.nodes, one.says] for rule, one in first.exports.items()],
        ),
        Table(
            f"Bits per byte over {count:,} bytes of unseen text, by exported files",
            [
                "model",
                "trained with",
                *(f"read with {words}" for words in RULES.values()),
                "other less own",
                "standard error",
                "same likeliest byte, %",
            ],
            [
                [
                    one.name,
                    RULES[one.trained],
                    *(round(float(one.exports[rule].bits.mean()), 4) for rule in RULES),
                    *(round(number, 4) for number in one.change),
                    round(one.same, 2),
                ]
                for one in readings
            ],
        ),
        steps_table(first.steps),
    ]


def claims(readings: Sequence[Reading]) -> list[Claim]:
    """That a model read with the other rule is another model."""
    return [
        Claim(
            f"{one.name}, trained with {RULES[one.trained]}: with {RULES[not one.trained]} it is another "
            "model (divergence of what it expects, bits per byte)",
            None,
            round(one.divergence, 4),
            one.divergence > _LEAST,
            headline=True,
        )
        for one in readings
    ]
