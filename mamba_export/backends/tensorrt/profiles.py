"""Optimization profiles: the batches and lengths that an engine serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mamba_export import given
from mamba_export.contract.names import BATCH, LENGTH, MAX_SIZE
from mamba_export.contract.program import Value, split_axis
from mamba_export.errors import EngineError, SessionError

if TYPE_CHECKING:  # they load numpy, and the command line reads these defaults for its help
    from mamba_export.folder.metadata import Metadata
    from mamba_export.generation.state import Tensor as Sized

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
        sizes: of other symbolic axes, by name: what was read before along an axis that grows, the height
            of an image.
    """

    name: str
    batch: Range
    length: Range
    sizes: Mapping[str, Range] = field(default_factory=dict)

    def takes(self, batch: int, length: int) -> bool:
        """Whether a request of this size fits."""
        return (
            self.batch[0] <= batch <= self.batch[2] and self.length[0] <= length <= self.length[2]
        )

    def shapes(self, tensor: Value) -> tuple[tuple[int, ...], ...]:
        """The tensor's minimum, optimum and maximum shape.

        Raises:
            EngineError: it has an axis without a range.
        """
        ranges = {BATCH: self.batch, LENGTH: self.length, **self.sizes}
        for size in tensor.shape:
            name = split_axis(size)[1] if isinstance(size, str) else ""
            if name and name not in ranges:
                raise EngineError(
                    f"input {tensor.name} has an axis {size} without a range: "
                    f"--size {name}=minimum,optimum,maximum"
                )
        return tuple(
            tensor.resolve({name: three[index] for name, three in ranges.items()})
            for index in range(3)
        )

    def __str__(self) -> str:
        return (
            f"{self.name}: batch {self.batch[0]} to {self.batch[2]}, "
            f"length {self.length[0]} to {self.length[2]}"
        )


def make_profiles(
    batch: Sequence[int], length: Sequence[int], sizes: Mapping[str, Range] | None = None
) -> tuple[Profile, Profile]:
    """The two profiles of an engine: a prompt of any length in the range, and one step.

    Args:
        batch, length: minimum, optimum and maximum.
        sizes: the same of other symbolic axes, checked already.

    Raises:
        EngineError: a range is not 1 <= minimum <= optimum <= maximum.
    """
    batches, lengths = check_range(batch, "--batch"), check_range(length, "--length")
    others = dict(sizes or {})
    return Profile(PREFILL, batches, lengths, others), Profile(DECODE, batches, (1, 1, 1), others)


def parse_range(text: str, option: str, minimum: int = 1) -> Range:
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
    return check_range(numbers, option, text, minimum)


def check_range(
    numbers: Sequence[int], option: str, text: str | None = None, minimum: int = 1
) -> Range:
    """The numbers as a range in [minimum, MAX_SIZE]; EngineError, naming the option, where they are none."""
    try:
        first, second, third = (
            given.integer(number, option, minimum, MAX_SIZE, EngineError)
            for number in given.listed(numbers, option, "three numbers", EngineError)
        )
        fits = first <= second <= third
    except (EngineError, ValueError):  # ValueError: not three
        fits = False
    if not fits:
        if text is None:
            plain = isinstance(numbers, tuple | list) and len(numbers) == 3
            text = ",".join(map(given.shown, numbers if plain else [numbers]))
        raise EngineError(
            f"{option} {text}: give minimum,optimum,maximum, as in 1,4,16, or one number, each at least "
            f"{minimum} and below 2^31"
        )
    return first, second, third


def refusal(profiles: Iterable[Profile], batch: int, length: int) -> str:
    """One line for a request that no profile takes; it names the ranges."""
    ranges = "; ".join(map(str, profiles))
    return (
        f"batch {batch} and length {length} are outside what the engine was built for ({ranges}): "
        "build it with other --batch or --length"
    )


def check_grown(profile: Profile, metadata: Metadata, tensors: Sequence[Sized]) -> None:
    """Raise SessionError where a state has grown beyond what a profile takes."""
    for info, tensor in zip(metadata.states, tensors, strict=True):
        if info.grows is not None:
            minimum, _, maximum = profile.sizes[str(info.grown_axis)]
            steps = tensor.shape[info.grows]
            if not minimum <= steps <= maximum:
                raise SessionError(
                    f"state {info.past.name} has grown to {steps} steps, the engine was built for {minimum} to "
                    f"{maximum}: build it with another --past"
                )
