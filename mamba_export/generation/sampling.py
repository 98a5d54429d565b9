"""Choosing the next token from logits: pure numpy, the same for every runtime.

The order and meaning of the steps are those of Hugging Face's generation: repetition penalty (CTRL,
section 4.1), temperature, top-k, top-p. Tokens that tie with the last one kept are kept too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mamba_export import given
from mamba_export.errors import SessionError, UnknownOptionError

MOST_TOP_K = 2**31 - 1
MOST_SEED = 2**63 - 1
"""The limits are those of mamba_run."""

_OFF = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
"""What None means."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: logits are divided by it; 0 takes the most likely token (greedy).
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens whose probabilities sum to at least this; 1 keeps all.
        repetition_penalty: logits of tokens that the prompt or the continuation holds already are divided
            by it where positive and multiplied where negative; 1 is off.
        seed: of the random stream; sequence i of a request draws from a stream of (seed, i).

    Numbers may be numpy's. None switches an option off, as in transformers; ``seed`` has no None.

    Raises:
        SessionError: a value is out of range; the message names the option.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        above_zero = math.ulp(0.0)
        self._number("temperature", "a number >= 0", 0.0, math.inf)
        self._integer("top_k")
        self._number("top_p", "a number above 0 and at most 1", above_zero, 1.0)
        # Logits are fp32: beyond these the quotient is 0 or infinite, whatever the logit.
        limits = np.finfo(np.float32)
        self._number(
            "repetition_penalty",
            f"a number from {limits.tiny:.3g} to {limits.max:.3g}",
            float(limits.tiny),
            float(limits.max),
        )
        seed = given.integer(self.seed, "seed", 0, MOST_SEED, SessionError)
        object.__setattr__(self, "seed", seed)

    def _number(self, name: str, expected: str, minimum: float, maximum: float) -> None:
        value = getattr(self, name)
        if value is None:
            value = _OFF[name]
        value = given.number(value, name, expected, minimum, maximum, SessionError)
        object.__setattr__(self, name, value)

    def _integer(self, name: str) -> None:
        value = getattr(self, name)
        value = (
            _OFF[name] if value is None else given.integer(value, name, 0, MOST_TOP_K, SessionError)
        )
        object.__setattr__(self, name, value)

    def replace(self, **options: Any) -> Sampling:
        """A copy with these fields in place of its own.

        Raises:
            UnknownOptionError: there is no field of a given name; the message lists those that there are.
            SessionError: a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in options:
            if name not in known:
                raise UnknownOptionError(
                    f"there is no option {name!r}: use one of {', '.join(known)}"
                )
        return dataclasses.replace(self, **options)


def penalise(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Apply the repetition penalty.

    Args:
        logits: (batch, vocab_size) fp32.
        seen: (batch, vocab_size) bool, the tokens that a sequence holds.
        penalty: as in ``Sampling``.
    """
    penalised = np.where(logits < 0, logits * np.float32(penalty), logits / np.float32(penalty))
    return np.where(seen, penalised, logits)


def divisor(sampling: Sampling) -> np.float32:
    """The temperature as logits are divided by it: never so small that it is 0 in fp32."""
    return max(np.float32(sampling.temperature), np.finfo(np.float32).tiny)


def warp(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Apply temperature (above 0), top-k and top-p.

    Args:
        logits: (batch, vocab_size) fp32.
        sampling: the options.

    Returns:
        (batch, vocab_size) fp32 with maximum 0 a row, and -inf where a token was dropped.
    """
    # The maximum is taken off first: a tiny temperature must not overflow.
    with np.errstate(over="ignore"):  # -inf is what is meant: far from the maximum
        scores = (logits - logits.max(axis=-1, keepdims=True)) / divisor(sampling)
    vocab_size = scores.shape[-1]
    if 0 < sampling.top_k < vocab_size:
        kth = np.partition(scores, vocab_size - sampling.top_k, axis=-1)
        last_kept = kth[:, vocab_size - sampling.top_k, None]
        scores = np.where(scores < last_kept, -np.inf, scores)
    if sampling.top_p < 1:
        ascending = np.sort(scores, axis=-1)
        probabilities = np.exp(ascending)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        below = probabilities.cumsum(axis=-1, dtype=np.float64).astype(np.float32)
        dropped = (below <= np.float32(1 - sampling.top_p)).sum(axis=-1)
        dropped = np.minimum(dropped, vocab_size - 1)  # the most likely token always stays
        last_kept = np.take_along_axis(ascending, dropped[:, None], axis=-1)
        scores = np.where(scores < last_kept, -np.inf, scores)
    return scores.astype(np.float32, copy=False)


def check_finite(is_finite: np.ndarray) -> None:
    """Raise SessionError unless every sequence's largest logit is finite."""
    if not is_finite.all():
        raise SessionError(
            "the model returned logits that are not finite; if it was exported in fp16, "
            "export it again with --dtype fp32 or bf16"
        )


class Sampler:
    """Chooses the tokens of a batch; holds a random stream and a seen-mask a sequence.

    Args:
        sampling: the options.
        prompts: token ids of each sequence so far.
        vocab_size: of the logits.

    Attributes:
        sampling: the options.
        seen: (batch, vocab_size) bool, the tokens that a sequence holds; None where no option needs it.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[np.ndarray], vocab_size: int) -> None:
        self.sampling = sampling
        # Streams of their own, so that a sequence does not depend on what else is in its batch.
        self._streams = [np.random.default_rng([sampling.seed, i]) for i in range(len(prompts))]
        self.seen: np.ndarray | None = None
        if sampling.repetition_penalty != 1:
            # A mask rather than the tokens themselves: its size does not grow.
            self.seen = np.zeros((len(prompts), vocab_size), bool)
            for row, prompt in zip(self.seen, prompts, strict=True):
                row[prompt] = True

    def sample(self, logits: np.ndarray) -> np.ndarray:
        """Choose a token for each sequence, and remember it.

        Args:
            logits: (batch, vocab_size) fp32; left as it is.

        Returns:
            (batch,) int64.

        Raises:
            SessionError: a sequence's logits hold NaN or infinity at their maximum.
        """
        rows = np.arange(len(logits))
        best = logits.argmax(axis=-1)  # NaN counts as the maximum
        check_finite(np.isfinite(logits[rows, best]))
        if self.seen is not None:
            logits = penalise(logits, self.seen, self.sampling.repetition_penalty)
            best = logits.argmax(axis=-1)
        tokens = best if self.sampling.temperature == 0 else self._draw(logits)
        self.note(tokens)
        return tokens

    def note(self, tokens: np.ndarray) -> None:
        """Remember (batch,) tokens, whoever chose them."""
        if self.seen is not None:
            self.seen[np.arange(len(tokens)), tokens] = True

    def draws(self) -> np.ndarray:
        """The next number of each sequence's random stream: (batch,) float64 in [0, 1)."""
        return np.array([stream.random() for stream in self._streams])

    def _draw(self, logits: np.ndarray) -> np.ndarray:
        weights = np.exp(warp(logits, self.sampling)).cumsum(axis=-1, dtype=np.float64)
        tokens = np.empty(len(logits), np.int64)
        for i, (row, number) in enumerate(zip(weights, self.draws(), strict=True)):
            # The first token whose cumulative weight exceeds the draw; a dropped token's never does. The
            # draw itself may round up to the total.
            draw = min(number * row[-1], np.nextafter(row[-1], 0))
            tokens[i] = np.searchsorted(row, draw, side="right")
        return tokens

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences of the batch."""
        self._streams = [self._streams[row] for row in rows]
        if self.seen is not None:
            self.seen = self.seen[list(rows)]
