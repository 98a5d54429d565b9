"""Decoding in a CUDA graph, with a stand-in for CUDA: states in place, choices, the pool, and every failure.

The stand-in: tests/cuda_stand_in.py. On a GPU: tests/test_native_onnxruntime_cuda.py and
tests/test_token_choice_cuda.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_stand_in import on_graphs, on_prompt_graphs
from torch import nn

from mamba_export.backends.onnxruntime.cuda_stream import ChoiceOptions, ChooseParams
from mamba_export.backends.onnxruntime.graph_stepper import GraphStepper
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.contract.program import Program, Tokens, Value
from mamba_export.contract.program import State as ProgramState
from mamba_export.errors import MambaExportWarning, SessionError
from mamba_export.export import export
from mamba_export.generation.decoding import Decoding
from mamba_export.generation.sampling import Sampler, Sampling
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import MambaLM

pytestmark = pytest.mark.skipif(CUSTOM_OPS.path() is None, reason=CUSTOM_OPS.why_absent())
SAMPLED = {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 3}


@pytest.fixture(scope="module")
def exported(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model, tmp_path_factory.mktemp("graph") / "out")


@pytest.fixture(scope="module")
def plain(exported: Path) -> OrtSession:
    return OrtSession(exported, providers=["CPUExecutionProvider"], threads=1)


def tokens_of(session: OrtSession, prompts: Any, **options: Any) -> list[list[int]]:
    options = {"stop_at_end": False, "max_new_tokens": 30} | options
    return [one.tokens for one in session.generate(prompts, **options)]


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("prompts", [[[5]], [[1, 2, 3], [4], [5, 6]]], ids=["one", "three"])
def test_generation_is_the_plain_one(
    exported: Path, plain: OrtSession, prompts: list[list[int]], options: dict[str, Any]
) -> None:
    session, stream, _ = on_graphs(exported)
    expected = tokens_of(plain, prompts, **options)
    for attempt in range(3):
        assert tokens_of(session, prompts, **options) == expected
        # The first step of a graph is run plainly; later generations find it captured.
        assert stream.runs == 30 * (attempt + 1) - 1


def test_rows_that_end_go_on_in_a_smaller_graph(exported: Path, plain: OrtSession) -> None:
    session, _, _ = on_graphs(exported)
    prompts = [[i] for i in range(6)]
    for options in ({}, SAMPLED):
        whole = tokens_of(plain, prompts, **options)
        end = int(np.bincount(np.concatenate([np.unique(row) for row in whole])).argmax())
        expected = [row[: row.index(end)] if end in row else row for row in whole]
        tokens = dataclasses.replace(session.metadata.tokens, eos_token_id=end)
        object.__setattr__(session.metadata, "tokens", tokens)
        assert tokens_of(session, prompts, stop_at_end=True, **options) == expected


def test_steps_are_run_with_the_states_in_place(exported: Path, plain: OrtSession) -> None:
    session, stream, _ = on_graphs(exported)
    ids = np.random.default_rng(0).integers(0, 256, (3, 12))
    start = session.advance(ids[:, :5])
    kept = start.numpy()
    stepper = session.stepper(start)
    assert isinstance(stepper, GraphStepper)
    expected = plain.stepper(plain.advance(ids[:, :5]))
    for position in range(5, 12):
        found = stepper.step(ids[:, position])
        np.testing.assert_array_equal(found, expected.step(ids[:, position]))
        for mine, its in zip(stepper.state.numpy(), expected.state.numpy(), strict=True):
            np.testing.assert_array_equal(mine, its)
    assert stepper.is_captured
    assert stream.runs == 6
    for before, after in zip(kept, start.numpy(), strict=True):
        np.testing.assert_array_equal(before, after)


class Sums(nn.Module):
    """A language model of another module than ours: it reads its state once more after it has written it."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(20, 8)

    def forward(self, ids: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embeddings(ids)
        present = 0.5 * past + x.mean(1)
        return (x + (past * torch.tanh(present))[:, None]) @ self.embeddings.weight.T, present


def test_a_state_may_be_read_after_it_was_written(tmp_path: Path) -> None:
    """As one step a run: the module is no recurrence over the steps of a longer one."""
    program = Program(
        Sums(),
        (Value("input_ids", "int64", ("batch", "length")),),
        (Value("logits", "fp32", ("batch", "length", 20)),),
        (ProgramState.of("sum", "past", "present", "fp32", ("batch", 8)),),
        Tokens(20),
    )
    folder = export(program, tmp_path / "out")
    plain = OrtSession(folder, providers=["CPUExecutionProvider"], threads=1)
    session, stream, _ = on_prompt_graphs(folder)
    ids = np.random.default_rng(0).integers(0, 20, (2, 12))
    steppers = [one.stepper(one.initial_state(2)) for one in (session, plain)]
    state = expected = None
    for position in range(12):
        found, wanted = (stepper.step(ids[:, position]).copy() for stepper in steppers)
        np.testing.assert_array_equal(found, wanted)
        logits, state = session.run(ids[:, position : position + 1], state)
        wanted, expected = plain.run(ids[:, position : position + 1], expected)
        np.testing.assert_array_equal(logits, wanted)
    assert stream.runs == 11 + 10


def test_a_graph_serves_one_generation_after_another(exported: Path) -> None:
    session, _, _ = on_graphs(exported)
    graphs = session._graphs
    assert graphs is not None
    tokens_of(session, [[1]])
    first = graphs._idle
    assert first is not None
    tokens_of(session, [[2]])
    assert graphs._idle is first
    tokens_of(session, [[1], [2]])
    assert graphs._idle is not first
    assert graphs._idle is not None
    assert graphs._idle.batch == 2


def test_two_generations_do_not_disturb_each_other(exported: Path, plain: OrtSession) -> None:
    session, _, _ = on_graphs(exported)
    expected = [tokens_of(plain, [[i]])[0] for i in (1, 2)]
    streams = [
        session.chooser(
            session.initial_state(1), _sampler(session, i), np.array([i], dtype=np.int64)
        )
        for i in (1, 2)
    ]
    found: list[list[int]] = [[], []]
    for _ in range(30):
        for row, one in zip(found, streams, strict=True):
            assert one is not None
            row += one.next().tolist()
    assert found == expected


def _sampler(session: OrtSession, token: int) -> Any:
    return Sampler(Sampling(), [np.array([token])], session.metadata.vocab_size)


def test_a_state_that_somebody_holds_is_not_written_again(exported: Path) -> None:
    session, _, _ = on_graphs(exported)
    stepper = session.stepper(session.initial_state(1))
    for token in (3, 4, 5):
        stepper.step(np.array([token]))
    state = stepper.state
    kept = state.numpy()
    del stepper
    gc.collect()
    tokens_of(session, [[7]])
    for before, after in zip(kept, state.numpy(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_threads_share_a_session(exported: Path, plain: OrtSession) -> None:
    session, _, _ = on_graphs(exported)
    prompts = [[[1]], [[2], [3]], [[4, 5, 6]]]
    expected = [tokens_of(plain, each) for each in prompts]
    found: dict[tuple[int, int], list[list[int]]] = {}

    def work(index: int) -> None:
        for attempt in range(5):
            found[index, attempt] = tokens_of(session, prompts[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    assert all(tokens == expected[index] for (index, _), tokens in found.items())


def test_what_cannot_be_captured_runs_plainly_and_says_so_once(
    exported: Path, plain: OrtSession
) -> None:
    for fail in ("while running", "at the end"):
        session, stream, inference = on_graphs(exported)
        if fail == "at the end":
            stream.problem = "capture: out of memory"
        else:
            inference.failure = lambda: RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for prompts in ([[1, 2]], [[3]], [[1, 2], [5]]):
                assert tokens_of(session, prompts) == tokens_of(plain, prompts)
        assert stream.runs == 0
        stepper = session.stepper(session.initial_state(1))
        assert not stepper.is_captured
        problem = stepper.capture_problem
        assert problem == (stream.problem or "no")
        said = f"steps run without CUDA graphs, and slower: {problem}"
        assert [(one.category, str(one.message)) for one in caught] == [(MambaExportWarning, said)]


def test_an_interrupt_while_capturing_leaves_nothing_behind(exported: Path) -> None:
    session, stream, inference = on_graphs(exported)
    inference.failure = KeyboardInterrupt
    stepper = session.stepper(session.initial_state(1))
    stepper.step(np.array([1]))
    with contextlib.suppress(KeyboardInterrupt):
        stepper.step(np.array([2]))
    assert stream.noted is None
    assert not stream.lock.locked()
    inference.failure = None
    stepper.step(np.array([2]))
    assert stepper.is_captured


def test_a_step_is_launched_before_the_choice_ahead_of_it_is_read(
    exported: Path, plain: OrtSession
) -> None:
    """The stand-in leaves undone what nobody waits for: what two steps have at once must lie apart."""
    session, stream, _ = on_graphs(exported)
    for sampling in (Sampling(), Sampling(**SAMPLED)):
        options = dataclasses.asdict(sampling)
        expected = tokens_of(plain, [[1], [9]], **options)
        prompts = [np.array([token]) for token in (1, 9)]
        sampler = Sampler(sampling, prompts, session.metadata.vocab_size)
        chooser = session.chooser(session.initial_state(2), sampler, np.array([1, 9]))
        assert chooser is not None
        found: list[list[int]] = []
        for step in range(30):
            found.append(chooser.next(goes_on=step % 7 != 6).tolist())
            assert chooser.is_ahead == (chooser.is_captured and step % 7 != 6)
            assert bool(stream.queued) == chooser.is_ahead
        assert list(map(list, zip(*found, strict=True))) == expected
        with pytest.raises(ValueError, match="under way"):
            _ = chooser.state
        with pytest.raises(ValueError, match="under way"):
            chooser.step(np.array([1, 2]))
        chooser.next()
        read = plain.advance([[1, *expected[0]], [9, *expected[1]]])
        for mine, its in zip(chooser.state.numpy(), read.numpy(), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)


def test_a_step_in_vain_is_nobodys(exported: Path, plain: OrtSession) -> None:
    """Behind an end token, and where the stream is in use as the generation goes."""
    session, stream, _ = on_graphs(exported)
    graphs = session._graphs
    assert graphs is not None
    whole = tokens_of(plain, [[1]])[0]
    tokens_of(session, [[1]])
    for busy in (False, True):
        generation = Decoding(session, [[1]], Sampling(), 30, ()).events()
        for _ in range(3):
            next(generation)
        with stream.lock if busy else contextlib.nullcontext():
            generation.close()
            gc.collect()
        assert bool(stream.queued) == busy
        assert len(graphs._ending) == busy
        assert tokens_of(session, [[1]]) == [whole]
        assert not graphs._ending


def test_logits_that_are_not_finite(exported: Path) -> None:
    session, _, _ = on_graphs(exported)
    bad = session.initial_state(1).numpy()
    bad[1][:] = np.nan
    chooser = session.chooser(
        session.state_from_numpy(bad), _sampler(session, 1), np.array([1], dtype=np.int64)
    )
    assert chooser is not None
    with pytest.raises(SessionError, match="not finite"):
        chooser.next()


def test_the_c_structs_are_those_of_the_header() -> None:
    """Sizes by the rules of C; names and order are read from the header itself."""
    header = (Path(__file__).parent.parent / "plugins/kernels/mamba_decode.h").read_text()
    for struct, name in (
        (ChoiceOptions, "mamba_choice_options"),
        (ChooseParams, "mamba_choose_params"),
    ):
        body = header[: header.index(f"}} {name};")].rpartition("typedef struct {")[2]
        lines = [line.partition(";")[0] for line in body.splitlines() if ";" in line]
        fields: list[str] = []
        for line in lines:
            kind, _, rest = line.replace("const ", "").strip().partition(" ")
            fields += [f"{kind} {part.strip()}" for part in rest.split(",")]
        kinds = {
            "int32_t": ctypes.c_int32,
            "int64_t": ctypes.c_int64,
            "float": ctypes.c_float,
            "double": ctypes.c_double,
            "mamba_dtype": ctypes.c_int,
        }
        expected = []
        for field in fields:
            pointer = "*" in field
            kind, _, field_name = field.replace("*", "").partition(" ")
            expected.append((field_name.strip(), ctypes.c_void_p if pointer else kinds[kind]))
        assert list(struct._fields_) == expected
