"""The induction task: its sequences, and the exported models that read them part by part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.induction import LENGTH, TRIGGER, VOCABULARY, Examples, make_examples

# The sequences


def check_examples(tokens: np.ndarray, answers: np.ndarray) -> None:
    assert (tokens == TRIGGER).sum(1).tolist() == [2] * len(tokens)
    assert (tokens[:, -1] == TRIGGER).all()
    first = (tokens == TRIGGER).argmax(1)
    assert (tokens[np.arange(len(tokens)), first + 1] == answers).all()
    assert 0 <= tokens.min() <= tokens.max() < VOCABULARY


@pytest.mark.parametrize("length", [4, LENGTH])
def test_the_trainings_sequences_have_one_answer(length: int) -> None:
    tokens, answers = make_examples(500, length, torch.Generator().manual_seed(0))
    assert tokens.shape == (500, length)
    check_examples(tokens.numpy(), answers.numpy())
    first = (tokens == TRIGGER).int().argmax(1)
    assert first.min() <= 0.05 * length
    assert 0.95 * (length - 3) <= first.max() <= length - 3


@pytest.mark.parametrize("length", [4, 100, 10_000])
def test_the_tests_sequences_are_the_same_in_any_parts(length: int) -> None:
    examples = Examples(40, length)
    whole = examples.tokens(0, length)
    check_examples(whole, examples.answers)
    for size in (3, 4096, 5000, length):
        if length // size < 1000:
            parts = [*examples.parts(size), examples.last]
            assert (np.concatenate(parts, axis=1) == whole).all()
    assert (Examples(40, length, seed=1).tokens(0, length) != whole).any()


def test_accuracy_is_the_share_of_right_answers() -> None:
    examples = Examples(8, 64)
    logits = np.eye(VOCABULARY)[examples.answers]
    assert examples.accuracy(logits) == 100
    logits[:2] = np.roll(logits[:2], 1, axis=1)
    assert examples.accuracy(logits) == 75
