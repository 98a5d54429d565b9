"""Selective copying (arXiv:2312.00752, section 4.1.1): remember the data tokens among the noise, in order.

The form is that of the S4 repository's copying data with "variable" positions (state-spaces/s4,
src/dataloaders/datasets/copying.py): the vocabulary's first token is noise, its last is the marker, and the 14
between them are data. There the length counts the noise alone; here it counts every token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasks.task import Batch, MakeBatch
from tasks.trainer import mean_cross_entropy

VOCABULARY = 16
DATA_TOKENS = 16
LENGTH = 4096
SHORTEST = 3 * DATA_TOKENS
NOISE, MARKER = 0, VOCABULARY - 1
TEST_SEED = 20_231_201
ACCURACY = "accuracy, %"

ABOUT = f"""\
Selective copying (Gu and Dao 2023, arXiv:2312.00752, section 4.1.1), in this exact form: a sequence of
{LENGTH:,} tokens from a vocabulary of {VOCABULARY}.

- Of the first {LENGTH - DATA_TOKENS:,} positions {DATA_TOKENS}, drawn at random without repetition, hold data
  tokens, each drawn from the {VOCABULARY - 2} symbols 1 to {VOCABULARY - 2}; all others hold the noise token 0.
- The last {DATA_TOKENS} positions hold the marker {MARKER}: there the model must give the data tokens in their
  order. The loss is on these {DATA_TOKENS} positions alone.
- Accuracy is the share of the data tokens that are given right at their place; guessing gives
  {100 / (VOCABULARY - 2):.1f} %.

A training begins with sequences of a sixty-fourth of that length (but at least {SHORTEST} tokens), goes on
with a sixteenth and a quarter of it and ends with the full length, for a quarter of its time each; the test is
of the full length.
"""


def make_examples(batch: int, length: int, generator: torch.Generator) -> Batch:
    """Examples of the task, made on the generator's device.

    Args:
        batch, length: how many sequences, and the tokens of each, markers included.
        generator: of all random choices.

    Returns:
        tokens (batch, length) int64 and the data tokens in their order, (batch, DATA_TOKENS) int64.
    """
    device, room = generator.device, length - DATA_TOKENS
    data = torch.randint(
        1, VOCABULARY - 1, (batch, DATA_TOKENS), generator=generator, device=device
    )
    # The positions of the largest of random numbers: a choice without repetition.
    chances = torch.rand(batch, room, generator=generator, device=device)
    places = chances.topk(DATA_TOKENS, dim=1).indices.sort(dim=1).values
    tokens = torch.full((batch, length), NOISE, device=device)
    tokens[:, room:] = MARKER
    return tokens.scatter_(1, places, data), data


def lengths(length: int) -> Sequence[tuple[float, int]]:
    """The training's stages: until which share of it the sequences have which length, the last ``length``.

    A step on short sequences costs a fraction, and shows what is to be learnt; every model has the same stages.
    """
    parts = (64, 16, 4, 1)
    return [
        ((index + 1) / len(parts), max(SHORTEST, length // part))
        for index, part in enumerate(parts)
    ]


def batches(length: int = LENGTH) -> MakeBatch:
    """The training's batches, whose sequences grow to ``length`` with the progress."""
    stages = lengths(length)

    def make(batch: int, generator: torch.Generator, progress: float) -> Batch:
        now = next((size for until, size in stages if progress < until), length)
        return make_examples(batch, now, generator)

    return make


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy (nats) at the markers."""
    tokens, data = batch
    logits, _ = model(tokens)
    return mean_cross_entropy(logits[:, -DATA_TOKENS:], data)


def held_out_examples(count: int, length: int = LENGTH, seed: int = TEST_SEED) -> Batch:
    """Examples to test on: the same on every device, for they are made on the CPU."""
    return make_examples(count, length, torch.Generator().manual_seed(seed))


def accuracy(logits: Tensor, data: Tensor) -> float:
    """Percent of the data tokens that are given right: logits (batch, length, VOCABULARY), data (batch, 16)."""
    given = logits[:, -DATA_TOKENS:].argmax(-1)
    return 100 * (given == data).double().mean().item()


@torch.no_grad()
def evaluate(
    model: nn.Module, device: torch.device, count: int = 1024, length: int = LENGTH
) -> dict[str, float]:
    """Accuracy of a model of PyTorch on ``count`` held-out examples, in fp32."""
    tokens, data = held_out_examples(count, length)
    right = [
        accuracy(model(part.to(device))[0].cpu(), wanted) * len(part)
        for part, wanted in zip(tokens.split(64), data.split(64), strict=True)
    ]
    return {ACCURACY: sum(right) / count}
