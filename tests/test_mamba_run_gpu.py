"""How mamba_run chooses tokens: its ``Chooser``, in a program of the harness, against numpy's definition."""

from __future__ import annotations

import os
import subprocess

import ml_dtypes
import numpy as np
import pytest

from mamba_export.generation.sampling import Sampling, warp
from mamba_export.libraries import installed

# The environment variable names a program that is not installed.
PROGRAM = os.environ.get("MAMBA_CHOOSE") or installed("mamba_choose")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(PROGRAM is None, reason="not built (-DMAMBA_TEST_PROGRAMS=ON builds it)"),
]
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def choose(
    logits: np.ndarray,
    temperature: float = 0,
    top_k: int = 0,
    seed: int = 0,
    count: int = 4,
    dtype: str = "fp32",
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(PROGRAM), dtype, repr(temperature), str(top_k), str(seed), str(count)],
        input=np.asarray(logits, np.float32).astype(DTYPES[dtype]).tobytes(),
        capture_output=True,
        timeout=60,
        check=False,
    )


def tokens(logits: np.ndarray, **options: object) -> list[int]:
    found = choose(logits, **options)  # type: ignore[arg-type]
    assert found.returncode == 0, found.stderr
    return [int(line) for line in found.stdout.split()]


def _logits(count: int) -> np.ndarray:
    # Sixteenths: the same numbers in every dtype.
    return np.random.default_rng(0).integers(-64, 64, count).astype(np.float32) / 16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 2, 256, 1025, 50280])
def test_the_most_likely_token_and_of_several_the_first(dtype: str, vocab_size: int) -> None:
    logits = _logits(vocab_size)
    best = int(logits.argmax())
    assert tokens(logits, dtype=dtype) == [best] * 4
    assert tokens(logits, temperature=1e-30, top_k=1, dtype=dtype)[0] in np.flatnonzero(
        logits == logits.max()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_follow_the_probabilities(dtype: str) -> None:
    logits = _logits(50)
    for options in (Sampling(temperature=0.8), Sampling(temperature=1.5, top_k=7)):
        expected = np.exp(warp(logits[None], options)[0].astype(np.float64))
        expected /= expected.sum()
        found = tokens(
            logits, temperature=options.temperature, top_k=options.top_k, count=4000, dtype=dtype
        )
        frequency = np.bincount(found, minlength=50) / 4000
        assert (frequency[expected == 0] == 0).all(), "a token below the k-th is never drawn"
        deviation = np.sqrt(expected * (1 - expected) / 4000)
        assert (np.abs(frequency - expected) <= 5 * deviation + 1e-9).all()


def test_a_seed_gives_the_same_tokens_again() -> None:
    logits = _logits(300)
    first = tokens(logits, temperature=1.0, seed=7, count=50)
    assert tokens(logits, temperature=1.0, seed=7, count=50) == first
    assert tokens(logits, temperature=1.0, seed=8, count=50) != first
    assert len(set(first)) > 10


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_told(value: float) -> None:
    logits = _logits(100)
    logits[60] = value
    for temperature in (0.0, 1.0):
        found = choose(logits, temperature=temperature)
        assert found.returncode == 2
        assert b"logits that are not finite" in found.stderr


def test_tokens_that_the_model_rules_out_are_never_chosen() -> None:
    logits = _logits(100)
    logits[::2] = -np.inf
    assert all(token % 2 for token in tokens(logits, temperature=2.0, count=200))
