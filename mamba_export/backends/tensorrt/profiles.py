"""Optimization profiles: the batches and lengths that an engine serves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mamba_export.errors import EngineError
from mamba_export.folder.metadata import TensorInfo

PREFILL = "prefill"
DECODE = "decode"

Range = tuple[int, int, int]
"""Minimum, optimum (what kernels are chosen for) and maximum."""


@dataclass(frozen=True)
class Profile:
    """Batches and lengths that one profile of an engine takes.

    Args:
        name: "prefill" or "decode".
        batch: of sequences.
        length: steps a run.
    """

    name: str
    batch: Range
    length: Range

    def takes(self, batch: int, length: int) -> bool:
        """Whether a request of this size fits."""
        return (
            self.batch[0] <= batch <= self.batch[2] and self.length[0] <= length <= self.length[2]
        )

    def shapes(self, tensor: TensorInfo) -> tuple[tuple[int, ...], ...]:
        """The tensor's minimum, optimum and maximum shape."""
        sizes = zip(self.batch, self.length, strict=True)
        return tuple(tensor.resolve(batch, length) for batch, length in sizes)

    def __str__(self) -> str:
        return (
            f"{self.name}: batch {self.batch[0]} to {self.batch[2]}, "
            f"length {self.length[0]} to {self.length[2]}"
        )


def make_profiles(batch: Sequence[int], length: Sequence[int]) -> tuple[Profile, Profile]:
    """The two profiles of an engine: a prompt of any length in the range, and one step.

    Raises:
        EngineError: a range is not 1 <= minimum <= optimum <= maximum.
    """
    batches, lengths = check_range(batch, "--batch"), check_range(length, "--length")
    return Profile(PREFILL, batches, lengths), Profile(DECODE, batches, (1, 1, 1))


def parse_range(text: str, option: str) -> Range:
    """A range from the command line: "1,4,16" (minimum, optimum, maximum), or one number for all three.

    Raises:
        EngineError: it is neither.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    return check_range(numbers, option, text)


def check_range(numbers: Sequence[int], option: str, text: str | None = None) -> Range:
    """The numbers as a range; EngineError, naming the option, where they are none."""
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        shown = ",".join(map(str, numbers)) if text is None else text
        raise EngineError(
            f"{option} {shown}: give minimum,optimum,maximum, as in 1,4,16, or one number, each at least 1"
        )
    return numbers[0], numbers[1], numbers[2]


def refusal(profiles: Iterable[Profile], batch: int, length: int) -> str:
    """One line for a request that no profile takes; it names the ranges."""
    ranges = "; ".join(map(str, profiles))
    return (
        f"batch {batch} and length {length} are outside what the engine was built for ({ranges}): "
        "build it with other --batch or --length"
    )
