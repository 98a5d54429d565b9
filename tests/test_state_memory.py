"""How often a large state lies on a GPU, counted on cuda_stand_in.py.

On a GPU: tests/test_state_memory_gpu.py.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_stand_in import FakeInference, FakeStream, on_graphs, on_prompt_graphs
from torch import nn

from mamba_export.backends.onnxruntime import (
    prompt_memory,
    prompt_parts,
    state_block,
    state_memory,
)
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.state_block import BlockState, StateBlock
from mamba_export.contract.program import Program, Tokens, Value
from mamba_export.contract.program import State as ProgramState
from mamba_export.errors import SessionError
from mamba_export.export import export
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import MambaLM

pytestmark = pytest.mark.skipif(CUSTOM_OPS.path() is None, reason=CUSTOM_OPS.why_absent())
BATCH = 4


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_block, "LARGE", 0)
    monkeypatch.setattr(state_memory, "_PIECE", 1000)
    monkeypatch.setattr(prompt_memory, "_IDLE_BYTES", 0)
    monkeypatch.setattr(prompt_parts, "LARGEST", 64 * BATCH)


@pytest.fixture(scope="module")
def exported(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model, tmp_path_factory.mktemp("memory") / "out")


@pytest.fixture(scope="module")
def plain(exported: Path) -> OrtSession:
    return OrtSession(exported, providers=["CPUExecutionProvider"], threads=1, native=True)


class Meter:
    """Counts the memory of blocks, and gives it out."""

    def __init__(self) -> None:
        self.taken = self.most_taken = 0  # bytes, now and ever
        self.is_short = False

    def allocate(self, block: StateBlock) -> Memory:
        if self.is_short:
            raise SessionError(f"failed to allocate {block.nbytes} bytes")
        memory = Memory(block.nbytes)
        self._add(block.nbytes)
        weakref.finalize(memory, self._add, -block.nbytes)
        return memory

    def _add(self, size: int) -> None:
        self.taken += size
        self.most_taken = max(self.most_taken, self.taken)


class Memory:
    def __init__(self, size: int) -> None:
        self._content = np.full(size, 0xFF, np.uint8)
        self.address = self._content.ctypes.data


class Counted:
    """A session on the stand-in, and its memory in states of a batch."""

    def __init__(self, folder: Path, meter: Meter) -> None:
        self.session, self.stream, self.inference = on_prompt_graphs(folder)
        self.meter = meter

    def one(self, batch: int = BATCH) -> int:
        return state_block.BlockKind.of(self.session._model).bytes(batch)

    @property
    def states(self) -> float:
        return self.meter.taken / self.one()

    @property
    def most(self) -> float:
        return self.meter.most_taken / self.one()


@pytest.fixture
def counted(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    meter = Meter()
    monkeypatch.setattr(StateBlock, "_allocate", lambda block: meter.allocate(block))
    return Counted(exported, meter)


def ids_of(length: int, batch: int = BATCH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, length))


def tokens_of(session: OrtSession, ids: np.ndarray, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": 6, "stop_at_end": False} | options
    return [one.tokens for one in session.generate(ids.tolist(), **options)]


def same(found: OrtState, expected: OrtState | list[np.ndarray]) -> None:
    arrays = expected if isinstance(expected, list) else expected.numpy()
    for mine, its in zip(found.numpy(), arrays, strict=True):
        np.testing.assert_allclose(mine, its, rtol=0, atol=2e-5)


@pytest.mark.parametrize("length", [1, 2, 40, 64, 65, 300])
def test_a_generation_takes_two_states(counted: Counted, plain: OrtSession, length: int) -> None:
    ids = ids_of(length)
    expected = tokens_of(plain, ids)
    for _ in range(4):
        assert tokens_of(counted.session, ids) == expected
        assert counted.most <= 2
    assert counted.stream.runs > 0


def test_what_prompts_leave_is_not_copied_to_go_on(counted: Counted) -> None:
    copied: list[int] = []
    queue_copy = counted.stream.queue_copy

    def note(to: int, source: int, size: int) -> None:
        copied.append(size)
        queue_copy(to, source, size)

    counted.stream.queue_copy = note  # type: ignore[method-assign]
    for _ in range(3):
        tokens_of(counted.session, ids_of(40))
    assert counted.one() not in copied
    stepper = counted.session.stepper(counted.session.advance(ids_of(40)))
    stepper.step(ids_of(1)[:, 0])
    assert counted.one() not in copied
    held = counted.session.advance(ids_of(40, batch=2))
    counted.session.stepper(held).step(ids_of(1, batch=2)[:, 0])
    assert copied.count(counted.one(2)) == 1


def test_a_state_that_is_kept_is_one_more_and_stays_as_it_is(
    counted: Counted, plain: OrtSession
) -> None:
    session, ids = counted.session, ids_of(40)
    state, expected = session.advance(ids), plain.advance(ids)
    assert counted.states == 2
    before = state.numpy()
    same(state, expected)
    after, wanted = session.advance(ids, state), plain.advance(ids, expected)
    assert counted.states == 3
    same(after, wanted)
    np.testing.assert_equal(state.numpy(), before)
    del after
    assert tokens_of(session, ids) == tokens_of(plain, ids)
    np.testing.assert_equal(state.numpy(), before)
    assert counted.most == 3
    del state
    assert counted.states == 2


def test_a_tensor_alone_keeps_its_state(counted: Counted) -> None:
    tensor = counted.session.advance(ids_of(40)).tensors[1]
    before = tensor.numpy()
    tokens_of(counted.session, ids_of(30, seed=1))
    np.testing.assert_array_equal(tensor.numpy(), before)


def test_a_stepper_leaves_its_start_as_it_is(counted: Counted, plain: OrtSession) -> None:
    session, ids = counted.session, ids_of(9)
    start, expected = session.advance(ids), plain.advance(ids)
    before = start.numpy()
    stepper, wanted = session.stepper(start), plain.stepper(expected)
    same(stepper.state, start)
    for position in range(4):
        found = stepper.step(ids[:, position])
        np.testing.assert_allclose(found, wanted.step(ids[:, position]), rtol=0, atol=2e-5)
        same(stepper.state, wanted.state)
    np.testing.assert_equal(start.numpy(), before)
    # A prompt of the same batch meanwhile goes elsewhere.
    same(session.advance(ids, start), plain.advance(ids, expected))
    same(stepper.state, wanted.state)
    np.testing.assert_allclose(stepper.step(ids[:, 5]), wanted.step(ids[:, 5]), rtol=0, atol=2e-5)
    left = stepper.state
    kept = left.numpy()
    del stepper
    assert tokens_of(session, ids) == tokens_of(plain, ids)
    np.testing.assert_equal(left.numpy(), kept)
    np.testing.assert_equal(start.numpy(), before)


def test_the_initial_state(counted: Counted, plain: OrtSession) -> None:
    session, ids = counted.session, ids_of(40)
    starts = [session.initial_state(BATCH) for _ in range(2)]
    assert counted.states == 2
    same(session.advance(ids, starts[0]), plain.advance(ids))
    session.stepper(starts[1]).step(ids[:, 0])
    for start in starts:
        assert not any(array.any() for array in start.numpy())
    assert session.initial_state(3).batch == 3
    with pytest.raises(SessionError, match="batch"):
        session.initial_state(0)


def test_another_batch_takes_the_place_of_the_last(counted: Counted, plain: OrtSession) -> None:
    for batch in (4, 8, 3, 4):
        ids = ids_of(70, batch)
        assert tokens_of(counted.session, ids) == tokens_of(plain, ids)
        assert counted.meter.taken == 2 * counted.one(batch)
    assert counted.meter.most_taken == 2 * counted.one(8)


def test_rows_that_end_make_room(counted: Counted, plain: OrtSession) -> None:
    """The half that goes on lies beside the whole batch's pair, which the next generation reads prompts in."""
    ids = np.repeat(ids_of(20, 2), 4, axis=0)
    whole = tokens_of(plain, ids, max_new_tokens=30)
    end = next(token for token in whole[0] if token not in whole[4])
    expected = [row[: row.index(end)] if end in row else row for row in whole]
    assert counted.session.metadata.tokens is not None
    tokens = dataclasses.replace(counted.session.metadata.tokens, eos_token_id=end)
    object.__setattr__(counted.session.metadata, "tokens", tokens)
    for _ in range(3):
        assert tokens_of(counted.session, ids, max_new_tokens=30, stop_at_end=True) == expected
    assert counted.meter.most_taken == 2 * counted.one(8) + counted.one(4)


def test_sequences_are_selected_and_joined_on_the_device(
    counted: Counted, plain: OrtSession
) -> None:
    states, arrays = [], []
    for seed, batch in enumerate((4, 1, 3)):
        states.append(counted.session.advance(ids_of(30, batch, seed)))
        arrays.append(states[-1].numpy())
    rows = [2, 3, 0, 0, 1]
    selected = states[0].select(rows)
    assert isinstance(selected, BlockState)
    np.testing.assert_equal(selected.numpy(), [array[rows] for array in arrays[0]])
    joined = counted.session.concatenate(states)
    assert isinstance(joined, BlockState)
    expected = [np.concatenate(column) for column in zip(*arrays, strict=True)]
    np.testing.assert_equal(joined.numpy(), expected)
    mixed = counted.session.concatenate([states[1], counted.session.state_from_numpy(arrays[2])])
    np.testing.assert_equal(mixed.numpy(), [array[4:] for array in expected])
    for state, kept in zip(states, arrays, strict=True):
        np.testing.assert_equal(state.numpy(), kept)
    with pytest.raises(SessionError, match="cannot select"):
        states[0].select([4])
    prompts = [ids_of(length)[0].tolist() for length in (9, 40, 9, 2)]
    found, wanted = (
        [row.tokens for row in session.generate(prompts, max_new_tokens=6, stop_at_end=False)]
        for session in (counted.session, plain)
    )
    assert found == wanted


def test_threads_share_a_session(counted: Counted, plain: OrtSession) -> None:
    prompts = [ids_of(20 + 30 * index, BATCH, index) for index in range(3)]
    expected = [tokens_of(plain, ids) for ids in prompts]
    states = [counted.session.advance(ids) for ids in prompts]
    kept = [state.numpy() for state in states]
    found: list[list[list[list[int]]]] = [[] for _ in prompts]

    def work(index: int) -> None:
        for _ in range(5):
            found[index].append(tokens_of(counted.session, prompts[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[tokens] * 5 for tokens in expected]
    for state, arrays in zip(states, kept, strict=True):
        np.testing.assert_equal(state.numpy(), arrays)
    del states, state
    tokens_of(counted.session, prompts[0])
    assert counted.states <= 3


def test_no_memory_to_move_a_state_is_an_error_that_leaves_it(
    counted: Counted, plain: OrtSession
) -> None:
    session, ids = counted.session, ids_of(40)
    state = session.advance(ids)
    before = state.numpy()
    counted.meter.is_short = True
    with pytest.raises(SessionError, match="failed to allocate"):
        session.advance(ids, state)
    stepper = session.stepper(state)
    with pytest.raises(SessionError, match="failed to allocate"):
        stepper.step(ids[:, 0])
    np.testing.assert_equal(state.numpy(), before)
    counted.meter.is_short = False
    found = stepper.step(ids[:, 0])
    wanted = plain.stepper(plain.advance(ids)).step(ids[:, 0])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    del stepper
    same(session.advance(ids, state), plain.advance(ids, plain.advance(ids)))
    np.testing.assert_equal(state.numpy(), before)


@pytest.mark.filterwarnings("ignore:prompts are read without")  # where a capture was to fail
@pytest.mark.parametrize("failing", range(7))
def test_memory_that_gets_short_in_a_long_prompt(
    counted: Counted, plain: OrtSession, failing: int
) -> None:
    """The part that fails is read again by smaller ones, from the state that it started from."""
    _fail_once(counted.inference, counted.stream, failing)
    ids = ids_of(300)
    logits, state = counted.session.run(ids)
    wanted, expected = plain.run(ids)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-5)
    same(state, expected)


def _fail_once(inference: FakeInference, stream: FakeStream, failing: int) -> None:
    run, runs = inference.run_with_iobinding, iter(range(100))

    def run_or_fail(binding: Any, options: Any = None) -> None:
        run(binding, options)
        if next(runs) == failing:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    inference.run_with_iobinding = run_or_fail  # type: ignore[method-assign]


class Products(nn.Module):
    """A language model of somebody's, with a state that starts with ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(20, 8)

    def forward(self, ids: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embeddings(ids).tanh()
        products = past[:, None] * x.cumsum(1)
        return products @ self.embeddings.weight.T, past * x.sum(1)


def test_a_start_of_other_numbers_than_zeros(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = ProgramState.of("product", "past", "present", "fp32", ("batch", 8))
    program = Program(
        Products(),
        (Value("input_ids", "int64", ("batch", "length")),),
        (Value("logits", "fp32", ("batch", "length", 20)),),
        (dataclasses.replace(state, start=1.0),),
        Tokens(20),
    )
    folder = export(program, tmp_path / "out")
    plain = OrtSession(folder, providers=["CPUExecutionProvider"], threads=1)
    ids = ids_of(30) % 20
    for make in (on_graphs, on_prompt_graphs):
        session, _, _ = make(folder)
        for _ in range(3):
            same(session.advance(ids), plain.advance(ids))
            np.testing.assert_equal(session.initial_state(2).numpy()[0], np.ones((2, 8)))
            assert tokens_of(session, ids[:, :1]) == tokens_of(plain, ids[:, :1])
