"""What a large state takes of a GPU's memory. Counted without one: tests/test_state_memory.py."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_provider import CUDA, NEEDS_CUDA_KERNELS

from mamba_export.backends.onnxruntime import state_block
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.export import export
from mamba_export.models import Mamba2Config, MambaConfig, MambaLM

SIZES = {"d_model": 256, "n_layer": 4, "vocab_size": 1000, "eos_token_id": 0}
CONFIGS = {
    "mamba": MambaConfig(**SIZES, d_state=64),  # type: ignore[arg-type]
    "mamba2": Mamba2Config(**SIZES),  # type: ignore[arg-type]
}


pytestmark = NEEDS_CUDA_KERNELS


@pytest.fixture(scope="module", params=CONFIGS)
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    torch.manual_seed(0)
    model = MambaLM(CONFIGS[request.param]).eval()
    out = tmp_path_factory.mktemp("large") / request.param
    return export(model, out, dtype="fp16", last_logits_only=True)


def free_bytes() -> int:
    """The whole GPU's: nothing else may use it meanwhile."""
    gc.collect()
    return int(torch.cuda.mem_get_info()[0])


def prompts_of(batch: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(1, 1000, (batch, length)).tolist()  # type: ignore[no-any-return]


def test_a_large_state_is_held_twice_and_given_back(folder: Path) -> None:
    session = OrtSession(folder, providers=[CUDA], native=True)
    batch, kind = 1, state_block.BlockKind.of(session._model)
    while kind.bytes(batch) < 1 << 30:
        batch *= 2
    one = kind.bytes(batch)
    prompts = prompts_of(batch, 90)
    options = {"max_new_tokens": 5, "stop_at_end": False}
    session.generate(prompts_of(1, 90), **options)  # libraries and their workspaces
    torch.cuda.mem_get_info()
    before = free_bytes()
    expected = session.generate(prompts, **options)
    # ONNX Runtime's arena for a part's activations, the part's graph and cuBLAS take less than half a state.
    assert before - free_bytes() <= 2.5 * one
    for _ in range(3):
        again = session.generate(prompts, **options)
        assert [row.tokens for row in again] == [row.tokens for row in expected]
    assert before - free_bytes() <= 2.5 * one
    taken = before - free_bytes()
    state = session.advance(np.array(prompts))
    kept = state.select([0, batch - 1]).numpy()
    session.generate(prompts, **options)
    assert 0.9 * one <= before - free_bytes() - taken <= 1.1 * one
    for array, was in zip(state.select([0, batch - 1]).numpy(), kept, strict=True):
        np.testing.assert_array_equal(array, was)
    del state
    assert before - free_bytes() <= taken + (64 << 20)
    del session
    assert before - free_bytes() <= one


def test_large_and_small_states_give_the_same_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, found = prompts_of(5, 200), []
    for least in (0, 1 << 28):
        monkeypatch.setattr(state_block, "LARGE", least)
        session = OrtSession(folder, providers=[CUDA], native=True)
        for options in ({}, {"temperature": 1.0, "seed": 3}):
            for _ in range(4):
                rows = session.generate(prompts, max_new_tokens=20, stop_at_end=False, **options)
                found.append([row.tokens for row in rows])
        state = session.advance(np.array(prompts))
        kept = state.numpy()
        logits, after = session.run(np.array(prompts)[:, :70], state)
        found += [logits.tolist(), *(array.tolist() for array in after.numpy())]
        for array, was in zip(state.numpy(), kept, strict=True):
            np.testing.assert_array_equal(array, was)
        rows = [3, 4, 0, 0]
        selected = state.select(rows)
        joined = session.concatenate([selected, after])
        for array, was, more in zip(joined.numpy(), kept, after.numpy(), strict=True):
            np.testing.assert_array_equal(array, np.concatenate([was[rows], more]))
    half = len(found) // 2
    assert found[:half] == found[half:]
