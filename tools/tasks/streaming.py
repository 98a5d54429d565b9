"""An exported folder that reads sequences of any length part by part, and what that takes."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from mamba_export import OrtSession
from mamba_export.errors import SessionError
from tasks.induction import Examples

_SCORES = 1 << 28
"""How many scores a call of a program with keys may have in all heads: in fp32 they take 1 GB."""


@dataclass(frozen=True)
class Reading:
    """What reading some sequences gave.

    Args:
        length: tokens of each sequence.
        sequences: how many, all in one batch.
        accuracy: percent of right answers; None where it did not come to the end.
        seconds: of all of them.
        state_bytes: what the state of one sequence takes at the end.
        peak_bytes: the most memory that the process had meanwhile, the device's own not counted.
        stopped: why it did not come to the end; empty where it did.
    """

    length: int
    sequences: int
    accuracy: float | None
    seconds: float
    state_bytes: int
    peak_bytes: int
    stopped: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return self.length * self.sequences / self.seconds


def read_stream(session: OrtSession, examples: Examples, size: int, seconds: float) -> Reading:
    """Stream sequences through an exported file, the state carried from part to part, and judge the end.

    Args:
        session: of a language model.
        examples: what to read.
        size: tokens of a part; where states grow less, the longer the sequence, so that the scores fit.
        seconds: after them the reading is stopped.
    """
    rows = _rows(session, examples)
    size = max(1, min(size, _SCORES // (rows * examples.length) if rows else size))
    state, accuracy, stopped = session.initial_state(examples.count), None, ""
    reset_peak()
    begin = time.monotonic()
    try:
        for part in examples.parts(size):
            state = session.advance(part, state)
            if time.monotonic() - begin > seconds:
                stopped = f"took more than {seconds:g} s"
                break
        else:
            logits, state = session.run(examples.last, state)
            accuracy = examples.accuracy(logits[:, -1])
    except SessionError as error:  # memory
        stopped = str(error)
    return Reading(
        length=examples.length,
        sequences=examples.count,
        accuracy=accuracy,
        seconds=time.monotonic() - begin,
        state_bytes=sum(tensor.nbytes for tensor in state.tensors) // examples.count,
        peak_bytes=peak_bytes(),
        stopped=stopped,
    )


def _rows(session: OrtSession, examples: Examples) -> int:
    """Rows of scores that a step of all sequences has, one a sequence and head of keys; 0 without keys."""
    heads = [int(one.past.shape[1]) for one in session.metadata.states if one.grows is not None]
    return examples.count * max(heads, default=0)


def reset_peak() -> None:
    """Let ``peak_bytes`` count from now on, where the system can (Linux, proc(5): clear_refs)."""
    with contextlib.suppress(OSError):  # else the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that this process has had since ``reset_peak``; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    peak = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(peak[0]) if peak else 0
