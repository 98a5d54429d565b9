"""The generation loop: tokens in, tokens out, over any session.

The prompts of a request decode as one batch, one token each a step. A recurrent model cannot be padded
(padding would enter the state), so prompts are read in groups of equal length, all but their last token,
and their states are concatenated; the last token is the first step of the batch, which gives the first
logits. Memory does not grow with the number of tokens, apart from the tokens themselves.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Generator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mamba_export.errors import SessionError
from mamba_export.generation.results import END_OF_TEXT, INTERRUPTED, LENGTH, Timings
from mamba_export.generation.sampling import Sampler, Sampling
from mamba_export.generation.session import Session, Stepper

PREFILL_TOKENS = 512
"""Tokens of a prompt that are read in one run (shared by a batch): bounds the memory of the logits, where the
session does not itself."""
_MIN_PREFILL = 16  # tokens a sequence and run, however large the batch


class Chooser(Protocol):
    """A batch of sequences that advances by a token each, and chooses it itself."""

    def next(self, *, goes_on: bool) -> np.ndarray:
        """Read the tokens that were chosen last, and choose the next: (batch,) int64.

        Args:
            goes_on: there is likely another call, whose step may begin now.
        """
        ...

    @property
    def is_ahead(self) -> bool:
        """Whether the step of the next call has begun."""
        ...

    @property
    def state(self) -> Any:
        """The state after the last step, valid until the next step; there is none while one is ahead."""
        ...


@runtime_checkable
class ChoosesOnDevice(Protocol):
    """A session that may choose tokens where the logits are."""

    def chooser(self, state: Any, sampler: Sampler, tokens: np.ndarray) -> Chooser | None:
        """A chooser whose first step reads ``tokens``; None where the host has to choose."""
        ...


@runtime_checkable
class SplitsPrompts(Protocol):
    """A session that may read any length in one call, in bounded memory."""

    @property
    def splits_prompts(self) -> bool:
        """Whether it does."""
        ...


class _HostChooser:
    """Chooses from logits that a stepper brings to the host."""

    def __init__(self, stepper: Stepper[Any], sampler: Sampler, tokens: np.ndarray) -> None:
        self._stepper = stepper
        self._sampler = sampler
        self._tokens = tokens

    def next(self, *, goes_on: bool) -> np.ndarray:
        self._tokens = self._sampler.sample(self._stepper.step(self._tokens))
        return self._tokens

    is_ahead = False

    @property
    def state(self) -> Any:
        return self._stepper.state


class Decoding:
    """One request under way.

    Args:
        session: any session of a language model.
        prompts: token ids, at least one a prompt.
        sampling: how tokens are chosen.
        max_new_tokens: of each continuation.
        end_tokens: each of them ends a continuation.
    """

    def __init__(
        self,
        session: Session[Any],
        prompts: list[list[int]],
        sampling: Sampling,
        max_new_tokens: int,
        end_tokens: Collection[int],
    ) -> None:
        self._session = session
        self._prompts = [np.asarray(prompt, np.int64) for prompt in prompts]
        self._sampling = sampling
        self._max_new_tokens = max_new_tokens
        self._end_tokens = frozenset(end_tokens)
        self.prompts = prompts
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.reasons: list[str] = [INTERRUPTED for _ in prompts]  # until another is known
        self._chosen = 0
        self._first = 0
        self._prefill_seconds = 0.0
        self._decode_seconds = 0.0

    def _check_lengths(self) -> None:
        """Raise SessionError where prompts differ in length and a state grows: such states do not join."""
        lengths = sorted({len(prompt) for prompt in self._prompts})
        states = self._session.metadata.states
        if len(lengths) > 1 and any(state.grows is not None for state in states):
            raise SessionError(
                f"prompts of {' and '.join(map(str, lengths))} tokens in one call: states of this model "
                "grow with the text; give prompts of one length a call"
            )

    def events(self) -> Generator[tuple[int, int | None], None, None]:
        """Generate: yields (row, token) for each token, and (row, None) when a row has ended.

        Time that the consumer takes counts as generation's, as it does for a user who waits for the text.
        """
        start = time.perf_counter()
        first_at: float | None = None
        self._check_lengths()
        try:
            state = _prefill(self._session, self._prompts)
            sampler = Sampler(self._sampling, self._prompts, self._session.metadata.vocab_size)
            tokens = np.array([prompt[-1] for prompt in self._prompts])
            rows = list(range(len(tokens)))  # the request's row of each row of the batch
            live = [True] * len(rows)
            chooser = self._chooser(state, sampler, tokens)
            del state  # its memory is the chooser's to write, or goes
            goes_on = True
            for step in itertools.count(1):
                # Where no end token comes before it, the last step is known.
                tokens = chooser.next(goes_on=goes_on and step < self._max_new_tokens)
                if first_at is None:
                    first_at = time.perf_counter()
                    self._first = len(rows)
                for slot, token in enumerate(tokens.tolist()):
                    if live[slot]:
                        row = rows[slot]
                        yield from self._take(row, token)
                        live[slot] = self.reasons[row] == INTERRUPTED
                remaining = [slot for slot, alive in enumerate(live) if alive]
                if not remaining:
                    return
                # Ended rows stay in the batch, idle, until they are half of it: taking them out copies
                # the states of the others, once no step is ahead of them.
                goes_on = 2 * len(remaining) > len(rows)
                if not goes_on and not chooser.is_ahead:
                    sampler.select(remaining)
                    tokens = tokens[remaining]
                    state = chooser.state.select(remaining)
                    del chooser  # its memory goes before the next asks for its own
                    chooser = self._chooser(state, sampler, tokens)
                    del state
                    rows = [rows[slot] for slot in remaining]
                    live = [True] * len(rows)
                    goes_on = True
        finally:
            end = time.perf_counter()
            self._prefill_seconds = (end if first_at is None else first_at) - start
            self._decode_seconds = 0.0 if first_at is None else end - first_at

    def _chooser(self, state: Any, sampler: Sampler, tokens: np.ndarray) -> Chooser:
        if isinstance(self._session, ChoosesOnDevice):
            on_device = self._session.chooser(state, sampler, tokens)
            if on_device is not None:
                return on_device
        return _HostChooser(self._session.stepper(state), sampler, tokens)

    def _take(self, row: int, token: int) -> Generator[tuple[int, int | None], None, None]:
        self._chosen += 1
        if token in self._end_tokens:
            self.reasons[row] = END_OF_TEXT
        else:
            self.tokens[row].append(token)
            if len(self.tokens[row]) == self._max_new_tokens:
                self.reasons[row] = LENGTH
            yield row, token
        if self.reasons[row] != INTERRUPTED:
            yield row, None

    def timings(self) -> Timings:
        """Of what was done; final once ``events`` is exhausted or closed."""
        return Timings(
            prompt_tokens=sum(map(len, self.prompts)),
            generated_tokens=self._chosen,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            first_tokens=min(self._first, self._chosen),
        )


def _prefill(session: Session[Any], prompts: list[np.ndarray]) -> Any:
    """State after all but the last token of each prompt, in the order of the prompts."""
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(len(prompt) - 1, []).append(row)
    states = []
    for length, rows in groups.items():
        state = None if length else session.initial_state(len(rows))
        chunk = max(_MIN_PREFILL, PREFILL_TOKENS // len(rows))
        if isinstance(session, SplitsPrompts) and session.splits_prompts:
            chunk = max(length, 1)
        for start in range(0, length, chunk):
            part = np.stack([prompts[row][start : min(start + chunk, length)] for row in rows])
            state = session.advance(part, state)
        states.append(state)
    if len(states) == 1:
        return states[0]
    order = [row for rows in groups.values() for row in rows]
    return session.concatenate(states).select(np.argsort(order).tolist())
