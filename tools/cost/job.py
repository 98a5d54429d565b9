"""What one process measures, as text that it is started with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EXPORTED, TRANSFORMER, CAPTURED, MAMBA_SSM, SCANS = FORMS = (
    "exported",
    "transformer",
    "captured transformer",
    "mamba_ssm",
    "scans",
)


@dataclass(frozen=True)
class Job:
    """A series of measurements in a process of its own: what it holds is its own, and so is a crash.

    Args:
        form: one of ``FORMS``.
        who: name of the series.
        device: "cpu" or "cuda".
        dtype: of weights, or of a scan's inputs.
        lengths: of texts, ascending.
        limit: seconds that one measurement may take.
        path: of the exported folder, or of the Transformer's graph.
        config: d_inner and d_state of a scan.
        size: published size of mamba_ssm's model.
        steps: tokens that are written to time one.
        batches: sequences at once, for throughput.
        context: tokens that were read before throughput is measured.
        times: (length, seconds) of texts that other processes of this series read.
        reads, writes: whether the series of reading and of writing go on.
    """

    form: str
    who: str
    device: str
    dtype: str
    lengths: Sequence[int]
    limit: float
    path: str = ""
    config: Mapping[str, int] = field(default_factory=dict)
    size: str = ""
    steps: int = 16
    batches: Sequence[int] = ()
    context: int = 0
    times: Sequence[tuple[int, float]] = ()
    reads: bool = True
    writes: bool = True

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Job:
        """Of ``to_text``."""
        values: dict[str, Any] = json.loads(text)
        times = [(int(length), float(seconds)) for length, seconds in values.pop("times")]
        return cls(**values, times=times)
