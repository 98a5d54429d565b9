"""An exported folder that reads sequences of any length part by part, and what that takes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mamba_export import OrtSession
from mamba_export.errors import SessionError
from tasks.induction import Examples

MOST, FEWEST = 512, 8
"""How many sequences of a length are read at most, and at least."""


@dataclass(frozen=True)
class Reading:
    """What reading some sequences gave.

    Args:
        length: tokens of each sequence.
        sequences: how many, all in one batch.
        accuracy: percent of right answers; None where it did not come to the end.
        seconds: of all of them.
        state_bytes: what the state of one sequence takes at the end.
        peak_bytes: the most memory that the process had meanwhile, of the host.
        device_bytes: memory in use on the GPU at the end, by every process; None without one.
        stopped: why it did not come to the end; empty where it did.
    """

    length: int
    sequences: int
    accuracy: float | None
    seconds: float
    state_bytes: int
    peak_bytes: int
    device_bytes: int | None = None
    stopped: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return self.length * self.sequences / self.seconds


def read_lengths(
    session: OrtSession,
    lengths: Sequence[int],
    *,
    tokens: int,
    part: int,
    scores: int,
    seconds: float,
    device_bytes: Callable[[], int] | None = None,
) -> Iterator[Reading]:
    """Read sequences of one length after another, until one does not come to the end.

    Args:
        session: of a language model.
        lengths: shortest first.
        tokens: of all sequences of a length together, between ``FEWEST`` and ``MOST`` of them.
        part: tokens that are read at once.
        scores: of attention that are computed at once, in all sequences and heads: parts are shorter for it.
        seconds: after them a reading is stopped, where states grow.
        device_bytes: tells the GPU's memory in use.
    """
    heads = [int(one.past.shape[1]) for one in session.metadata.states if one.grows is not None]
    for length in lengths:
        count = max(FEWEST, min(MOST, tokens // length))
        size, limit = part, math.inf
        if heads:  # the time rises with the square
            count = max(FEWEST, min(count, 16 * tokens // length**2))
            size, limit = max(1, min(part, scores // (count * max(heads) * length))), seconds
        reading = read_stream(session, Examples(count, length), size, limit, device_bytes)
        yield reading
        if reading.stopped:
            return


def read_stream(
    session: OrtSession,
    examples: Examples,
    part: int,
    seconds: float,
    device_bytes: Callable[[], int] | None = None,
) -> Reading:
    """Stream sequences through an exported file, the state carried from part to part, and judge the end.

    Args:
        session: of a language model.
        examples: what to read.
        part: tokens that are read at once.
        seconds: after them the reading is stopped.
        device_bytes: tells the GPU's memory in use.
    """
    state, accuracy, stopped = session.initial_state(examples.count), None, ""
    reset_peak()
    begin = time.monotonic()
    try:
        for some in examples.parts(part):
            state = session.advance(some, state)
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
        device_bytes=None if device_bytes is None else device_bytes(),
        stopped=stopped,
    )


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
