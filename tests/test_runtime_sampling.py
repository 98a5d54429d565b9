"""Sampling: the same choices as Hugging Face's logits processors, and reproducible draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mamba_export.errors import SessionError
from mamba_export.generation.sampling import Sampler, Sampling, penalise, warp

VOCAB = 1000


def random_logits(batch: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 4, (batch, VOCAB)).astype(np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    list(
        itertools.product([0.3, 1.0, 1.7], [0, 1, 7, 50, VOCAB, 5000], [0.01, 0.5, 0.9, 0.999, 1.0])
    ),
)
def test_warp_equals_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = random_logits()
    steps = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    expected = steps(torch.zeros(3, 1, dtype=torch.int64), torch.from_numpy(logits)).softmax(-1)
    found = warp(logits, Sampling(temperature, top_k, top_p))
    np.testing.assert_array_equal(np.isfinite(found), expected.numpy() > 0)
    probabilities = np.exp(found) / np.exp(found).sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 3.0])
def test_penalty_equals_transformers(penalty: float) -> None:
    logits = random_logits()
    tokens = np.random.default_rng(1).integers(0, VOCAB, (3, 400))  # with repeats: once is enough
    expected = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.from_numpy(tokens), torch.from_numpy(logits)
    )
    seen = np.zeros((3, VOCAB), bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    np.testing.assert_array_equal(penalise(logits, seen, penalty), expected.numpy())


def test_penalty_counts_the_prompt_and_what_was_generated() -> None:
    logits = np.array([[4.0, 3.0, 2.0, 1.0]], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=10.0), [np.array([0])], 4)
    assert [int(sampler.sample(logits)[0]) for _ in range(4)] == [1, 2, 3, 0]


def test_greedy_takes_the_maximum_and_changes_nothing() -> None:
    logits = random_logits()
    before = logits.copy()
    sampler = Sampler(Sampling(), [np.array([1])] * 3, VOCAB)
    np.testing.assert_array_equal(sampler.sample(logits), logits.argmax(-1))
    np.testing.assert_array_equal(logits, before)


def test_draws_follow_the_distribution() -> None:
    probabilities = np.array([0.5, 0.25, 0.0, 0.2, 0.05])
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities)[None].astype(np.float32)
    sampler = Sampler(Sampling(temperature=1.0), [np.array([0])], 5)
    draws = np.array([sampler.sample(logits)[0] for _ in range(20000)])
    shares = np.bincount(draws, minlength=5) / len(draws)
    assert shares[2] == 0
    np.testing.assert_allclose(shares, probabilities, atol=0.012)  # above 3 standard deviations


def test_a_row_does_not_depend_on_its_batch() -> None:
    options = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.2, seed=5)
    prompts = [np.array([1, 2]), np.array([3])]
    together, alone = Sampler(options, prompts, VOCAB), Sampler(options, prompts[:1], VOCAB)
    for step in range(20):
        logits = random_logits(2, seed=step)
        assert together.sample(logits)[0] == alone.sample(logits[:1])[0]
    together.select([0])
    assert together.sample(random_logits(1)) == alone.sample(random_logits(1))


def test_rows_and_seeds_have_different_streams() -> None:
    flat = np.zeros((2, VOCAB), np.float32)

    def draw(seed: int) -> list[list[int]]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), [np.array([0])] * 2, VOCAB)
        return [sampler.sample(flat).tolist() for _ in range(8)]

    first = draw(1)
    assert first == draw(1)
    assert first != draw(2)
    assert [a for a, _ in first] != [b for _, b in first]


def test_a_draw_that_rounds_up_to_the_total_takes_a_kept_token() -> None:
    class AlmostOne:
        def random(self) -> float:
            return float(np.nextafter(1.0, 0.0))

    sampler = Sampler(Sampling(temperature=1.0, top_k=2), [np.array([0])], 6)
    sampler._streams = [AlmostOne()]  # type: ignore[list-item]
    assert sampler.sample(np.array([[3.0, 9.0, 8.9, 1.0, 0.0, 0.0]], np.float32))[0] == 2


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    logits = random_logits()
    sampler = Sampler(Sampling(temperature=1e-30), [np.array([0])] * 3, VOCAB)
    np.testing.assert_array_equal(sampler.sample(logits), logits.argmax(-1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(bad: float, temperature: float) -> None:
    logits = random_logits()
    logits[1, 17] = bad
    with pytest.raises(SessionError, match="not finite"):
        Sampler(Sampling(temperature), [np.array([0])] * 3, VOCAB).sample(logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")),
        ("top_k", -1), ("top_k", 1.5), ("top_p", 0.0), ("top_p", 1.1), ("top_p", float("nan")),
        ("repetition_penalty", 0.0), ("repetition_penalty", -2.0), ("seed", -1),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(SessionError, match=f"^{name} is "):
        Sampling(**{name: value})
