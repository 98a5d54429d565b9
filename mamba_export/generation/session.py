"""What a session is, whatever runtime is behind it, as far as generation needs it.

A session holds an exported model. A state is opaque: it lies on the session's device, belongs to a batch
of sequences, and says everything about what they have read so far. A stepper holds a batch that advances
one token at a time, with every buffer allocated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from mamba_export.folder.metadata import Metadata
from mamba_export.folder.tokenizer import Tokenizer
from mamba_export.generation.values import Inputs


class State(Protocol):
    """The states of a batch of sequences, on the session's device."""

    @property
    def batch(self) -> int:
        """Number of sequences."""
        ...

    def select(self, indices: Sequence[int]) -> Any:
        """A copy with these sequences, in this order; of the same type."""
        ...


StateT = TypeVar("StateT", bound=State)
ReturnedStateT = TypeVar("ReturnedStateT", bound=State, covariant=True)


class Stepper(Protocol[ReturnedStateT]):
    """A batch of sequences that advances by a token each at every step."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """tokens (batch,) int64 -> logits (batch, vocab_size) fp32, valid until the next step."""
        ...

    @property
    def state(self) -> ReturnedStateT:
        """The state after the last step, valid until the next step."""
        ...


class Session(Protocol[StateT]):
    """An exported model in a runtime."""

    @property
    def metadata(self) -> Metadata:
        """What the exported folder says of itself."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer; SessionError where it has none."""
        ...

    def run(self, inputs: Inputs, state: StateT | None = None) -> tuple[Any, StateT]:
        """Inputs of a part, the state before it (None at the start) -> outputs, state after."""
        ...

    def advance(self, inputs: Inputs, state: StateT | None = None) -> StateT:
        """``run`` for the state alone: no output leaves the device."""
        ...

    def initial_state(self, batch: int) -> StateT:
        """What sequences start from."""
        ...

    def concatenate(self, states: Sequence[StateT]) -> StateT:
        """One state of all their sequences, in order."""
        ...

    def stepper(self, state: StateT) -> Stepper[StateT]:
        """A stepper that starts from ``state`` and leaves it as it is."""
        ...
