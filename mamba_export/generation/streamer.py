"""One sample at a time, in whatever runtime: sensors, sound, whatever is no tokens."""

from __future__ import annotations

from typing import Any, Generic, Protocol

import numpy as np
from numpy.typing import ArrayLike

from mamba_export.folder.metadata import Metadata
from mamba_export.generation.session import ReturnedStateT, StateT
from mamba_export.generation.values import returned, step_sample


class Steps(Protocol[ReturnedStateT]):
    """Steps of a batch of sequences in a runtime, each over one element along the input's length."""

    @property
    def metadata(self) -> Metadata:
        """Of the program."""
        ...

    @property
    def batch(self) -> int:
        """Number of sequences."""
        ...

    @property
    def state(self) -> ReturnedStateT:
        """The state after the last step, valid until the next step."""
        ...

    def advance(self, element: np.ndarray) -> list[np.ndarray]:
        """An element (batch, ...) that was checked -> outputs without the length, valid until the next step."""
        ...


class Streamer(Generic[StateT]):
    """A batch of sequences of samples that advances one sample a step: of sensors, of sound.

    Args:
        steps: of a program that ``check_samples`` takes; this streamer's alone.
    """

    def __init__(self, steps: Steps[StateT]) -> None:
        self._steps = steps

    def step(self, sample: ArrayLike) -> Any:
        """Read one sample of each sequence.

        Args:
            sample: (batch, ...), the input's axes without the length.

        Returns:
            The output without the length, (batch, ...), of several a dict by name; valid until the next step.

        Raises:
            SessionError: the sample is of another shape or kind, or holds what is no finite number, and was not
                read; or the runtime failed.
        """
        steps = self._steps
        found = steps.advance(step_sample(sample, steps.batch, steps.metadata))
        return returned(found, steps.metadata)

    @property
    def state(self) -> StateT:
        """The state after the last step, valid until the next step."""
        return self._steps.state
