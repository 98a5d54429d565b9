"""mamba_run on a GPU: how it chooses tokens, against numpy's definition, and its session on a fake TensorRT.

The harness has both: ``mamba_choose`` chooses as mamba_run does, and ``libmamba_fake_tensorrt.so`` is a small
recurrent model behind TensorRT's interfaces, for there is no TensorRT for every GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mamba_export.generation.sampling import Sampling, warp
from mamba_export.libraries import installed
from mamba_export.printing import printable_lines

# The environment variables name what is not installed.
PROGRAM = os.environ.get("MAMBA_CHOOSE") or installed("mamba_choose")
RUN = os.environ.get("MAMBA_RUN") or installed("mamba_run")
TENSORRT = os.environ.get("MAMBA_FAKE_TENSORRT") or installed("libmamba_fake_tensorrt.so")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        None in (PROGRAM, RUN, TENSORRT), reason="not built (-DMAMBA_TEST_PROGRAMS=ON builds it)"
    ),
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


# --- The session -----------------------------------------------------------------------------------


def continued(prompt: list[int], count: int) -> list[int]:
    """What the model of tests/tensorrt_harness/fake_model.h goes on with."""
    state, found = [0, 0, 0], []

    def read(token: int) -> None:
        state[:] = [(3 * number + token + i) % 97 for i, number in enumerate(state)]

    for token in prompt:
        read(token)
    for _ in range(count):
        shift = 5 * state[0] + 3 * state[1] + state[2]
        found.append(max(range(256), key=lambda v: (7 * v + shift) % 256))
        read(found[-1])
    return found


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Writes an engine's folder and runs mamba_run on it."""

    def call(
        *arguments: object,
        last_byte: bytes = b"\0",
        eos: Any = None,
        byte_tokenizer: bool = False,
        **options: Any,
    ) -> Any:
        engine = b"ftrt" + bytes(20) + bytes([10, 14, 1, 48]) + bytes(40) + last_byte
        ranges = {"prefill": [1, 8, 64], "decode": [1, 1, 1]}
        description = {
            "format": 1,
            "contract_version": 1,
            "runtime": "tensorrt",
            "runtime_version": "10.14.1",
            "compute_capability": None,
            "plugin_library": None,
            "byte_tokenizer": byte_tokenizer,
            "inputs": [
                {"name": "input_ids", "shape": [-1, -1]},
                {"name": "past", "shape": [-1, 3]},
            ],
            "outputs": [{"name": "logits"}, {"name": "present"}],
            "profiles": [
                {"name": name, "batch": [1, 1, 1], "length": length}
                for name, length in ranges.items()
            ],
            "states": [["past", "present"]],
            "vocab_size": 256,
            "engine_sha256": hashlib.sha256(engine).hexdigest(),
        }
        (tmp_path / "model.engine").write_bytes(engine)
        (tmp_path / "engine.json").write_text(json.dumps(description))
        metadata = {"format": 2, "tokens": {"eos_token_id": eos}, "states": [{"start": 0.0}]}
        (tmp_path / "mamba_export.json").write_text(json.dumps(metadata))
        command = [RUN, "--engine", tmp_path, "--tensorrt", TENSORRT, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.run(
            list(map(str, command)),
            **{**pipes, "text": True, "timeout": 60, "check": False, **options},
        )

    return call


def _tokens(found: subprocess.CompletedProcess[str]) -> list[int]:
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)["tokens"]


@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_a_prompt_is_gone_on_with(run: Callable[..., Any], length: int) -> None:
    """Steps after the first two are launches of CUDA graphs, one for each side of the states."""
    prompt = [(37 * i + 11) % 256 for i in range(length)]
    found = run("--json", "--max-new-tokens", 30, "--tokens", ",".join(map(str, prompt)))
    assert _tokens(found) == continued(prompt, 30)


def test_the_end_of_text_token_ends_it(run: Callable[..., Any]) -> None:
    expected = continued([1, 2, 3], 30)
    for eos in (expected[10], [expected[25], expected[10]]):
        found = run("--json", "--max-new-tokens", 30, "--tokens", "1,2,3", eos=eos)
        ends = {eos} if isinstance(eos, int) else set(eos)
        assert _tokens(found) == expected[: min(map(expected.index, ends))]
        assert json.loads(found.stdout)["finish_reason"] == "stop"


def test_text_reaches_a_pipe_as_it_is_and_a_terminal_escaped(run: Callable[..., Any]) -> None:
    expected = bytes(continued([1, 2, 3], 60))
    options = {"byte_tokenizer": True, "text": False}
    arguments = ("--max-new-tokens", 60, "--tokens", "1,2,3")
    assert run(*arguments, **options).stdout == expected + b"\n"
    reader, terminal = pty.openpty()
    found = run(*arguments, stdout=terminal, **options)
    os.close(terminal)
    shown = os.read(reader, 1 << 16).replace(b"\r\n", b"\n").decode()
    os.close(reader)
    assert found.returncode == 0
    assert shown == printable_lines(expected.decode("utf-8", "replace")) + "\n"


def test_a_full_disk_ends_it(run: Callable[..., Any]) -> None:
    with Path("/dev/full").open("wb") as full:
        found = run("--tokens", "1", "--max-new-tokens", 30, stdout=full)
    assert found.returncode == 2
    assert found.stderr == (
        "mamba_run: standard output cannot be written (No space left on device)\n"
    )


def test_a_seed_of_mamba_run(run: Callable[..., Any]) -> None:
    def drawn(*options: object) -> list[int]:
        return _tokens(run("--json", "--tokens", "1,2,3", "--temperature", 5, *options))

    assert drawn("--seed", 3) == drawn("--seed", 3) != drawn("--seed", 4)
    assert drawn("--top-k", 1) == continued([1, 2, 3], 64)


def test_a_benchmark_runs_the_prompt_again_from_the_start(run: Callable[..., Any]) -> None:
    found = run("--json", "--bench", "--max-new-tokens", 30, "--tokens", "1,2,3")
    assert _tokens(found) == continued([1, 2, 3], 30)


def test_a_model_that_overflows_is_told(run: Callable[..., Any]) -> None:
    found = run("--tokens", "1", last_byte=b"N")
    assert found.returncode == 2
    assert found.stderr.startswith("mamba_run: the model returned logits that are not finite")
