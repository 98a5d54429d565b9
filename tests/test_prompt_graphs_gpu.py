"""Prompts read by captured parts on a GPU: bit-equal to plain runs of the parts, in bounded memory."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_provider import CUDA, NEEDS_CUDA_KERNELS

from mamba_export import contract
from mamba_export.backends.onnxruntime import prompt_parts
from mamba_export.backends.onnxruntime.binding import run_once
from mamba_export.backends.onnxruntime.cuda_stream import GpuStream, Graph
from mamba_export.backends.onnxruntime.prompt_parts import largest_part, part_lengths
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.errors import MambaExportWarning, SessionError
from mamba_export.export import export
from mamba_export.generation.values import check_inputs
from mamba_export.models import Mamba2Config, MambaConfig, MambaLM

LENGTHS = (1, 2, 63, 64, 65, 127, 500, 1000, 2048, 4097, 5000)


pytestmark = NEEDS_CUDA_KERNELS


SIZES = {"d_model": 256, "n_layer": 4, "vocab_size": 1000, "eos_token_id": 0}
CONFIGS = {"mamba": MambaConfig(**SIZES), "mamba2": Mamba2Config(**SIZES)}  # type: ignore[arg-type]


@pytest.fixture(
    scope="module",
    params=[(mixer, dtype) for mixer in CONFIGS for dtype in contract.DTYPES],
    ids="-".join,
)
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    mixer, dtype = request.param
    torch.manual_seed(0)
    model = MambaLM(CONFIGS[mixer]).eval()
    folder = tmp_path_factory.mktemp("prompts") / dtype
    return export(model, folder, dtype=dtype, last_logits_only=dtype != "fp32")


@pytest.fixture(scope="module")
def session(folder: Path) -> OrtSession:
    return OrtSession(folder, providers=[CUDA], native=True)


def prompts_of(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, (batch, length))


def plain_run(session: OrtSession, ids: np.ndarray, state: OrtState) -> tuple[np.ndarray, OrtState]:
    """ONNX Runtime's own run, in one piece."""
    (logits,), state = run_once(session._model, check_inputs(ids, session.metadata), state)
    return logits, state


def by_parts(session: OrtSession, ids: np.ndarray, state: OrtState) -> tuple[np.ndarray, OrtState]:
    lengths = part_lengths(ids.shape[1], largest_part(session.metadata, len(ids)))
    logits = []
    for part in np.split(ids, np.cumsum(lengths)[:-1], axis=1):
        found, state = plain_run(session, part, state)
        logits.append(found)
    return (logits[-1] if session.metadata.last_logits_only else np.concatenate(logits, 1)), state


def same(found: tuple[np.ndarray, OrtState], expected: tuple[np.ndarray, OrtState]) -> None:
    np.testing.assert_array_equal(found[0].view(np.uint8), expected[0].view(np.uint8))
    for mine, its in zip(found[1].numpy(), expected[1].numpy(), strict=True):
        np.testing.assert_array_equal(mine.view(np.uint8), its.view(np.uint8))


def used_by(session: OrtSession, prompts: list[np.ndarray]) -> int:
    """Bytes of GPU memory that reading prompts leaves taken. The whole GPU's: nothing else may use it."""
    gc.collect()
    before = torch.cuda.mem_get_info()[0]
    for ids in prompts:
        session.run(ids)
    gc.collect()
    return int(before - torch.cuda.mem_get_info()[0])


@pytest.mark.parametrize("batch", [1, 3])
def test_replayed_parts_are_the_plain_runs(session: OrtSession, batch: int) -> None:
    start = session.initial_state(batch)
    for length in LENGTHS:
        ids = prompts_of(batch, length, seed=length)
        expected = by_parts(session, ids, start)
        for _ in range(4):  # plain, plain, captured, replayed
            same(session.run(ids, start), expected)
        parts = part_lengths(length, largest_part(session.metadata, batch))
        assert session._prompts is not None
        captured = session._prompts.captured
        assert session.capture_problem is None
        assert {(batch, part) for part in parts} <= set(captured)


@pytest.mark.parametrize("batch", [1, 3])
def test_parts_are_the_whole(session: OrtSession, batch: int) -> None:
    """Within the rounding of the dtype: products of other sizes add in another order."""
    bound = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2}[session.metadata.dtype]
    for length in (1000, 5000):
        ids = prompts_of(batch, length)
        found, whole = (
            each[0].astype(np.float64)
            for each in (session.run(ids), plain_run(session, ids, session.initial_state(batch)))
        )
        assert np.linalg.norm(found - whole) / np.linalg.norm(whole) <= bound


def test_any_split_goes_on_from_its_state(session: OrtSession) -> None:
    ids = prompts_of(2, 700)
    for cuts in ([1], [64], [500], [63, 64, 65], [256, 699]):
        state, expected = session.initial_state(2), session.initial_state(2)
        for part in np.split(ids, cuts, axis=1):
            kept = state.numpy()
            logits, after = session.run(part, state)
            wanted, expected = by_parts(session, part, expected)
            same((logits, after), (wanted, expected))
            for array, before in zip(state.numpy(), kept, strict=True):
                np.testing.assert_array_equal(array, before)
            state = after


def test_states_go_on_into_decode(session: OrtSession) -> None:
    ids = prompts_of(3, 330)
    for _ in range(4):
        found, expected = (
            session.stepper(state)
            for state in (
                session.advance(ids),
                by_parts(session, ids, session.initial_state(3))[1],
            )
        )
        for position in range(5):
            mine = found.step(ids[:, position]).copy()
            np.testing.assert_array_equal(mine, expected.step(ids[:, position]))


def test_memory_is_that_of_the_largest_part(session: OrtSession) -> None:
    largest = prompt_parts.largest_part(session.metadata, 1)
    used_by(session, [prompts_of(1, largest)] * 4)
    # What the host keeps is not counted: all logits of a long prompt come here.
    assert used_by(session, [prompts_of(1, 20 * largest)]) <= 8 << 20
    lengths = np.random.default_rng(0).integers(1, 3000, 300)
    used_by(session, [prompts_of(1, int(length)) for length in lengths])
    assert used_by(session, [prompts_of(1, int(length)) for length in lengths]) <= 64 << 20


def test_a_prompt_that_is_read_once_captures_nothing(folder: Path) -> None:
    session = OrtSession(folder, providers=[CUDA], native=True)
    session.generate([prompts_of(1, 300)[0].tolist()], max_new_tokens=4)
    assert session._prompts is not None
    assert session._prompts.captured == []


def test_no_memory_for_graphs_is_said_once_and_runs_go_on_uncaptured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GpuStream.end_capture

    def full(self: GpuStream) -> Graph:
        real(self)
        raise SessionError("capture: out of memory")

    monkeypatch.setattr(GpuStream, "end_capture", full)
    session = OrtSession(folder, providers=[CUDA], native=True)
    ids = prompts_of(1, 100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = by_parts(session, ids, session.initial_state(1))
        for _ in range(5):
            same(session.run(ids), expected)
        tokens = [
            [
                one.tokens
                for one in session.generate([[1, 2, 3]], max_new_tokens=5, stop_at_end=False)
            ]
            for _ in range(2)
        ]
    assert tokens[0] == tokens[1]
    assert [(one.category, str(one.message)) for one in caught] == [
        (MambaExportWarning, f"{work} without CUDA graphs, and slower: capture: out of memory")
        for work in ("prompts are read", "steps run")
    ]
    assert session._prompts is not None
    assert session._prompts.captured == []
