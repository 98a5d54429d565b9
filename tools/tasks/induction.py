"""Induction heads (arXiv:2312.00752, section 4.1.2): say again what followed a token when it came before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from tasks.task import Batch, MakeBatch
from tasks.trainer import mean_cross_entropy

VOCABULARY = 16
TRIGGER = VOCABULARY - 1
LENGTH = 256
SHORTEST = 4
LONGEST = 1 << 20
TEST_SEED, VALIDATION_SEED = 20_231_201, 20_231_202
CHANCE = 100 / TRIGGER
_BLOCK = 4096
"""Tokens that are drawn at once, whatever the parts are that a reader asks for."""

ABOUT = f"""\
Induction heads (Gu and Dao 2023, arXiv:2312.00752, section 4.1.2), in this exact form: a sequence of {LENGTH}
tokens from a vocabulary of {VOCABULARY}.

- Every token is drawn at random from the {TRIGGER} symbols 0 to {TRIGGER - 1}, but for two places that hold the
  special token {TRIGGER}: the last one, and one that is drawn at random from all but the last two.
- At the end the model must give the token that followed the special one the first time. The loss is on this one
  answer. Guessing gives {CHANCE:.1f} %.

The training sees sequences of {LENGTH} tokens alone. Longer ones, up to {LONGEST:,} tokens, are for tests.
"""


@dataclass(frozen=True)
class Examples:
    """Sequences of any length to test on, made part by part, the same whatever the parts are.

    Args:
        count: how many.
        length: tokens of each.
        seed: of their own.
    """

    count: int
    length: int
    seed: int = TEST_SEED

    @cached_property
    def places(self) -> np.ndarray:
        """(count,): where the special token stands the first time."""
        return self._random(0).integers(self.length - 2, size=self.count)

    @cached_property
    def answers(self) -> np.ndarray:
        """(count,): the tokens that follow it."""
        return self._random(1).integers(TRIGGER, size=self.count)

    def parts(self, size: int) -> Iterator[np.ndarray]:
        """The sequences without their last tokens, from the beginning, (count, at most size) int64 each."""
        for start in range(0, self.length - 1, size):
            yield self.tokens(start, min(start + size, self.length - 1))

    @property
    def last(self) -> np.ndarray:
        """(count, 1): the last tokens, behind which the answer is asked."""
        return self.tokens(self.length - 1, self.length)

    def tokens(self, start: int, end: int) -> np.ndarray:
        """(count, end - start) int64: some steps of the sequences."""
        blocks = range(start // _BLOCK, -(-end // _BLOCK))
        drawn = [
            self._random(2, block).integers(TRIGGER, size=(self.count, _BLOCK)) for block in blocks
        ]
        first = blocks.start * _BLOCK
        tokens = np.concatenate(drawn, axis=1)[:, start - first : end - first]
        for places, values in (
            (self.places, np.full(self.count, TRIGGER)),
            (self.places + 1, self.answers),
        ):
            rows = np.flatnonzero((places >= start) & (places < end))
            tokens[rows, places[rows] - start] = values[rows]
        if end == self.length:
            tokens[:, -1] = TRIGGER
        return tokens

    def accuracy(self, logits: np.ndarray) -> float:
        """Percent of right answers: logits (count, VOCABULARY) of the last step."""
        return 100 * float((logits.argmax(-1) == self.answers).mean())

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.length, *key])


def make_examples(batch: int, length: int, generator: torch.Generator) -> Batch:
    """Examples to train on, made on the generator's device.

    Returns:
        tokens (batch, length) int64, and the answers (batch,) int64.
    """
    device = generator.device
    tokens = torch.randint(TRIGGER, (batch, length), generator=generator, device=device)
    places = torch.randint(length - 2, (batch, 1), generator=generator, device=device)
    tokens.scatter_(1, places, TRIGGER)
    tokens[:, -1] = TRIGGER
    return tokens, tokens.gather(1, places + 1).squeeze(1)


def batches(length: int) -> MakeBatch:
    """The training's batches, all of one length."""
    return lambda batch, generator, progress: make_examples(batch, length, generator)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy (nats) of the answer."""
    tokens, answers = batch
    logits, _ = model(tokens)
    return mean_cross_entropy(logits[:, -1], answers)
