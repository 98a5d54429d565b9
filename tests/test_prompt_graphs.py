"""Prompts read by captured parts, on cuda_stand_in.py. On a GPU: tests/test_prompt_graphs_gpu.py."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from cuda_stand_in import FakeInference, FakeStream, on_prompt_graphs

from mamba_export.backends.onnxruntime import prompt_memory, prompt_parts
from mamba_export.backends.onnxruntime.prompt_graphs import _Reading
from mamba_export.backends.onnxruntime.prompt_parts import GRANULE, largest_part, part_lengths
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.state_block import BlockTensor
from mamba_export.cli import run
from mamba_export.errors import MambaExportWarning, SessionError
from mamba_export.export import export
from mamba_export.folder.metadata import read_metadata
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import Mamba2Config, MambaLM

pytestmark = pytest.mark.skipif(CUSTOM_OPS.path() is None, reason=CUSTOM_OPS.why_absent())
LARGEST = 256  # of a batch, in these tests
OTHER_KINDS = ("numpy", "selected", "concatenated", "stepper")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_parts, "LARGEST", LARGEST)


@pytest.fixture(scope="module", params=[False, True], ids=["every step", "last step"])
def exported(
    tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "out"
    return export(tiny_model, folder, last_logits_only=request.param)


@pytest.fixture(scope="module")
def plain(exported: Path) -> OrtSession:
    return OrtSession(exported, providers=["CPUExecutionProvider"], threads=1, native=True)


def prompts_of(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, length))


def by_parts(
    plain: OrtSession, ids: np.ndarray, state: OrtState | None = None, largest: int | None = None
) -> tuple[np.ndarray, OrtState]:
    """Plain runs over the parts that a prompt is read by."""
    largest = largest or largest_part(plain.metadata, len(ids))
    cuts = np.cumsum(part_lengths(ids.shape[1], largest))[:-1]
    logits = []
    for part in np.split(ids, cuts, axis=1):
        found, state = plain.run(part, state)
        logits.append(found)
    assert state is not None
    return (logits[-1] if plain.metadata.last_logits_only else np.concatenate(logits, 1)), state


def same(found: tuple[np.ndarray, OrtState], expected: tuple[np.ndarray, OrtState]) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    same_state(found[1], expected[1])


def same_state(found: OrtState, expected: OrtState) -> None:
    for mine, its in zip(found.numpy(), expected.numpy(), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_parts_make_up_the_prompt() -> None:
    kinds = set()
    for length in range(1, 5001):
        parts = part_lengths(length, 2048)
        assert sum(parts) == length
        assert min(parts) > 0
        assert len(parts) <= length // 2048 + 2
        kinds |= set(parts)
    assert len(kinds) == 2048 // GRANULE + GRANULE - 1
    assert part_lengths(1000, 2048) == [960, 40]
    assert part_lengths(5000, 2048) == [2048, 2048, 896, 8]
    assert part_lengths(40, 16) == [16, 16, 8]


def test_the_largest_part_bounds_memory(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_parts, "LARGEST", 8192)
    metadata = read_metadata(exported)
    assert [largest_part(metadata, batch) for batch in (1, 3, 8, 512, 10_000)] == [
        8192, 2048, 1024, 16, 16,
    ]  # fmt: skip
    monkeypatch.setattr(prompt_parts, "_LOGITS_BYTES", 3 * 256 * 4 * 100)
    assert largest_part(metadata, 3) == (2048 if metadata.last_logits_only else 64)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_prompt_is_its_parts(exported: Path, plain: OrtSession, batch: int) -> None:
    session, stream, _ = on_prompt_graphs(exported)
    assert session.splits_prompts
    assert session.capture_problem is None
    for length in (1, 2, 63, 64, 65, 200, 256, 257, 800):
        ids = prompts_of(batch, length, seed=length)
        expected = by_parts(plain, ids)
        for _ in range(4):
            same(session.run(ids), expected)
            same_state(session.advance(ids), expected[1])
        runs = stream.runs
        same(session.run(ids), expected)
        assert stream.runs - runs == len(part_lengths(length, largest_part(plain.metadata, batch)))
        whole, _ = plain.run(ids)
        np.testing.assert_allclose(expected[0], whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_mamba2_is_read_alike(tmp_path: Path) -> None:
    config = Mamba2Config(d_model=16, n_layer=1, vocab_size=256, d_state=8, head_dim=8)
    folder = export(MambaLM(config).eval(), tmp_path / "out")
    plain = OrtSession(folder, providers=["CPUExecutionProvider"], threads=1, native=True)
    session, stream, _ = on_prompt_graphs(folder)
    ids = prompts_of(2, 300)
    for _ in range(4):
        same(session.run(ids), by_parts(plain, ids))
    assert stream.runs > 0


def test_any_split_of_a_prompt_goes_on_from_its_state(exported: Path, plain: OrtSession) -> None:
    session, _, _ = on_prompt_graphs(exported)
    ids = prompts_of(2, 300)
    for cuts in ([1], [100], [64, 65, 299], [1, 2, 3, 259]):
        for _ in range(3):
            state, expected = None, None
            for part in np.split(ids, cuts, axis=1):
                logits, state = session.run(part, state)
                wanted, expected = by_parts(plain, part, expected)
                np.testing.assert_array_equal(logits, wanted)
            assert state is not None
            assert expected is not None
            same_state(state, expected)


def test_states_are_left_as_they_are(exported: Path) -> None:
    session, _, _ = on_prompt_graphs(exported)
    states = [session.initial_state(1)]
    kept = [states[0].numpy()]
    for seed in range(5):
        states.append(session.advance(prompts_of(1, 70, seed), states[seed // 2]))
        kept.append(states[-1].numpy())
    for state, arrays in zip(states, kept, strict=True):
        assert all(isinstance(tensor, BlockTensor) for tensor in state.tensors)
        for found, before in zip(state.numpy(), arrays, strict=True):
            np.testing.assert_array_equal(found, before)
    assert not any(array.any() for array in kept[0])


def test_a_start_that_lies_there_is_not_copied_again(exported: Path, plain: OrtSession) -> None:
    session, stream, _ = on_prompt_graphs(exported)
    prompts = session._prompts
    assert prompts is not None
    copied: list[int] = []
    queue_copy = stream.queue_copy

    def note(to: int, source: int, size: int) -> None:
        copied.append(to)
        queue_copy(to, source, size)

    stream.queue_copy = note  # type: ignore[method-assign]
    short, long = prompts_of(1, 40), prompts_of(1, 40 + LARGEST)
    state = session.advance(short)
    past = prompts._memory._buffers[1].past.state.place.memory.address
    same_state(state, by_parts(plain, short)[1])
    # (prompt, what it starts from, copies): the second part of a long prompt starts from the first's.
    for ids, start, copies in [
        (short, None, 0), (short, state, 1), (short, state, 0), (short, None, 1), (long, None, 1),
        (long, None, 2), (short, None, 1), (short, None, 0),
    ]:  # fmt: skip
        copied.clear()
        expected = by_parts(plain, ids, None if start is None else by_parts(plain, short)[1])
        same(session.run(ids, start), expected)
        assert copied.count(past) == copies


def test_a_state_of_another_batch_is_refused(exported: Path) -> None:
    session, _, _ = on_prompt_graphs(exported)
    state = session.advance(prompts_of(2, 5))
    for read in (session.run, session.advance):
        with pytest.raises(SessionError, match="has batch 2, the input has batch 1"):
            read(prompts_of(1, 5), state)
    other, _, _ = on_prompt_graphs(exported)
    same(other.run(prompts_of(2, 5), state), session.run(prompts_of(2, 5), state))


def test_states_that_are_put_together_anew(exported: Path, plain: OrtSession) -> None:
    """The layers' states change places: they lie in one block, and not as the next prompt needs them."""
    session, _, _ = on_prompt_graphs(exported)
    ids = prompts_of(1, 70)
    for _ in range(3):
        found, expected = (
            OrtState([one.tensors[index] for index in (2, 3, 0, 1)])
            for one in (session.advance(ids), by_parts(plain, ids)[1])
        )
        same(session.run(ids, found), by_parts(plain, ids, expected))


def test_a_long_prompt_lets_others_in(exported: Path, plain: OrtSession) -> None:
    session, _, _ = on_prompt_graphs(exported)
    prompts = session._prompts
    assert prompts is not None
    long, short = prompts_of(1, 5 * LARGEST), prompts_of(1, 9)
    read, others = prompts._read_in_memory, []

    def read_and_let_in(*arguments: Any) -> OrtState:
        state = read(*arguments)
        other = read(_Reading(short, None, session.initial_state(1), is_ours=False))
        others.append((other, arguments[0].tokens.shape[1]))
        return state

    prompts._read_in_memory = read_and_let_in  # type: ignore[method-assign]
    same(session.run(long), by_parts(plain, long))
    assert [length for _, length in others] == [LARGEST] * 5
    for state, _ in others:
        same_state(state, by_parts(plain, short)[1])


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_states_of_every_origin(exported: Path, plain: OrtSession, kind: str) -> None:
    session, _, _ = on_prompt_graphs(exported)
    ids = prompts_of(2, 130)

    def of(one: OrtSession) -> OrtState:
        start = one.advance(ids[:, :64])
        if kind == "numpy":
            return one.state_from_numpy(start.numpy())
        if kind == "selected":
            return start.select([1, 0])
        if kind == "concatenated":
            return one.concatenate([start.select([1]), start.select([1])])
        stepper = one.stepper(start)
        for position in range(3):
            stepper.step(ids[:, position])
        return stepper.state

    for _ in range(3):
        same(session.run(ids[:, 64:], of(session)), by_parts(plain, ids[:, 64:], of(plain)))


@pytest.mark.parametrize("lengths", [(1,), (2,), (300,), (5, 66, 5, 66)], ids=str)
def test_generation_is_the_plain_one(
    exported: Path, plain: OrtSession, lengths: tuple[int, ...]
) -> None:
    session, _, _ = on_prompt_graphs(exported)
    prompts = [prompts_of(1, length, index)[0].tolist() for index, length in enumerate(lengths)]
    found, expected = (
        [one.tokens for one in each.generate(prompts, max_new_tokens=20, stop_at_end=False)]
        for each in (session, plain)
    )
    assert found == expected


def test_what_is_kept_is_bounded(
    exported: Path, plain: OrtSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_memory, "_MOST_PARTS", 4)
    monkeypatch.setattr(prompt_memory, "_IDLE_BYTES", 0)
    session, _, _ = on_prompt_graphs(exported)
    prompts = session._prompts
    assert prompts is not None
    for length in (1, 2, 3, 64, 129, 1, 2, 3):
        for batch in (1, 2):
            ids = prompts_of(batch, length)
            same(session.run(ids), by_parts(plain, ids))
            assert list(prompts._memory._buffers) == [batch]
            assert {key[0] for key in prompts._memory.parts} == {batch}
    for length in range(1, 60):
        session.advance(prompts_of(1, length))
        assert len(prompts._memory.parts) <= 4
    for _ in range(3):
        session.advance(prompts_of(1, 59))
    assert prompts.captured == [(1, 59)]


def test_a_prompt_that_is_read_once_captures_nothing(exported: Path) -> None:
    session, stream, _ = on_prompt_graphs(exported)
    for length in (200, 200, 57):
        session.run(prompts_of(1, length))
    assert stream.runs == 0
    # A long one is its own repetition.
    session.run(prompts_of(1, 10 * LARGEST))
    assert stream.runs == 8


@pytest.mark.parametrize("where", ["while running", "at the end"])
def test_what_cannot_be_captured_runs_plainly_and_says_so_once(
    exported: Path, plain: OrtSession, where: str
) -> None:
    session, stream, inference = on_prompt_graphs(exported)
    if where == "at the end":
        stream.problem = "capture: out of memory"
    else:
        inference.failure = lambda: RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for length in (100, 100, 100, 100, 64, 7, 7, 7):
            ids = prompts_of(1, length)
            same(session.run(ids), by_parts(plain, ids))
    assert [warning.category for warning in caught] == [MambaExportWarning]
    assert session.capture_problem == (stream.problem or "no")
    assert str(caught[0].message).endswith(session.capture_problem or "")
    assert stream.runs == 0


class Limited:
    """ONNX Runtime's session, which has no memory for runs over many tokens."""

    def __init__(self, inference: FakeInference, stream: FakeStream, session: OrtSession) -> None:
        self.inner = inference.session
        self.tokens = 10**9
        self.message = "Failed to allocate memory for requested buffer of size 1"
        self.tried: list[int] = []
        inference.session = self

    def io_binding(self) -> Any:
        outer = self

        class Binding:
            def __init__(self) -> None:
                self.inner = outer.inner.io_binding()
                self.tokens = 0

            def bind_input(self, name: str, *place: Any) -> None:
                if name == "input_ids":
                    self.tokens = place[3][0] * place[3][1]
                self.inner.bind_input(name, *place)

            def bind_output(self, *arguments: Any) -> None:
                self.inner.bind_output(*arguments)

        return Binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self.tried.append(binding.tokens)
        if binding.tokens > self.tokens:
            raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {self.message}")
        self.inner.run_with_iobinding(binding.inner)


def test_less_memory_makes_parts_smaller(exported: Path, plain: OrtSession) -> None:
    session, stream, inference = on_prompt_graphs(exported)
    limited = Limited(inference, stream, session)
    ids = prompts_of(1, 600)
    for _ in range(4):
        same(session.run(ids), by_parts(plain, ids))
    limited.tokens = 70
    session._prompts._memory.parts.clear()  # type: ignore[union-attr]
    limited.tried.clear()
    same(session.run(ids), by_parts(plain, ids, largest=64))
    assert limited.tried[:5] == [256, 128, 64, 64, 64]
    same(session.run(ids), by_parts(plain, ids, largest=64))
    assert max(limited.tried[2:]) == 64, "what was learnt is kept"


@pytest.mark.parametrize("message", ["Failed to allocate memory", "a kernel failed"])
def test_a_run_that_fails_is_one_line_and_the_session_lives_on(
    exported: Path, plain: OrtSession, message: str
) -> None:
    session, stream, inference = on_prompt_graphs(exported)
    limited = Limited(inference, stream, session)
    limited.tokens, limited.message = 0, message
    with pytest.raises(SessionError, match=message) as caught:
        session.run(prompts_of(1, 300))
    assert "\n" not in str(caught.value)
    assert limited.tried == ([256, 128, 64, 32, 16] if "memory" in message else [256])
    assert not stream.queued
    limited.tokens = 10**9
    ids = prompts_of(2, 300)
    same(session.run(ids), by_parts(plain, ids))


def test_an_interrupt_while_capturing_leaves_nothing_behind(
    exported: Path, plain: OrtSession
) -> None:
    session, stream, inference = on_prompt_graphs(exported)
    ids = prompts_of(1, 70)
    for _ in range(2):
        session.run(ids)
    inference.failure = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        session.run(ids)
    assert stream.noted is None
    assert not stream.lock.locked()
    inference.failure = None
    for _ in range(2):
        same(session.run(ids), by_parts(plain, ids))
    assert session._prompts.captured == [(1, 64), (1, 6)]  # type: ignore[union-attr]


def test_threads_share_a_session(exported: Path, plain: OrtSession) -> None:
    session, _, _ = on_prompt_graphs(exported)
    prompts = [prompts_of(1 + index % 2, 100 + index, index) for index in range(4)]
    expected = [by_parts(plain, ids) for ids in prompts]
    found: list[list[Any]] = [[] for _ in prompts]

    def work(index: int) -> None:
        for _ in range(6):
            found[index].append(session.run(prompts[index]))
            session.generate([[1, 2, 3]], max_new_tokens=3)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, wanted in zip(found, expected, strict=True):
        assert len(results) == 6
        for result in results:
            same(result, wanted)


def test_what_is_read_plainly_says_why(plain: OrtSession) -> None:
    assert not plain.splits_prompts
    assert "no CUDA stream" in str(plain.capture_problem)
    metadata = plain.metadata
    assert prompt_parts.why_not(metadata) is None
    no_tokens = dataclasses.replace(metadata, tokens=None)
    assert "no language model" in str(prompt_parts.why_not(no_tokens))
    grown = dataclasses.replace(metadata.states[0], grows=2)
    assert "grow" in str(prompt_parts.why_not(dataclasses.replace(metadata, states=(grown,))))
    assert "no states" in str(prompt_parts.why_not(dataclasses.replace(metadata, states=())))
    for shape in (("batch", 9), (1, "length"), ("batch", "4*rows"), ("batch", "batch")):
        ids = dataclasses.replace(metadata.inputs[0], shape=shape)
        assert "fixed" in str(prompt_parts.why_not(dataclasses.replace(metadata, inputs=(ids,))))


def test_the_command_says_it_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_command(*_: Any, **__: Any) -> int:
        warnings.warn("prompts are read without CUDA graphs", MambaExportWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(run, "run_command", run_command)
    with pytest.raises(typer.Exit):
        run.command(Path("out"), ["a prompt"])
    assert capsys.readouterr().err == "note: prompts are read without CUDA graphs\n"
