"""TrtSession without a GPU: shapes, addresses, state swapping, captures, profiles and errors.

The stand-in for TensorRT: tests/trt_stand_in.py.
"""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hybrid import Writer, writer_program
from trt_stand_in import MOST_LENGTH, FakeEngine, FakeGpu, fake_engine

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.tensorrt import cuda_driver
from mamba_export.backends.tensorrt import engine as engine_module
from mamba_export.backends.tensorrt import session as trt_module
from mamba_export.backends.tensorrt.building import write_json
from mamba_export.backends.tensorrt.cuda_driver import Gpu
from mamba_export.backends.tensorrt.description import EngineDescription, describe
from mamba_export.backends.tensorrt.engine_checks import HOST_CODE_VARIABLE, check_host_code
from mamba_export.backends.tensorrt.fingerprint import sha256
from mamba_export.backends.tensorrt.names import TENSORRT, TENSORRT_RTX
from mamba_export.backends.tensorrt.profiles import make_profiles
from mamba_export.backends.tensorrt.session import TrtSession
from mamba_export.errors import EngineError, SessionError
from mamba_export.export import export
from mamba_export.folder.metadata import read_metadata
from mamba_export.models import MambaLM


@pytest.fixture(scope="module")
def folder(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model, tmp_path_factory.mktemp("trt") / "tiny")


@pytest.fixture(scope="module")
def reference(folder: Path) -> OrtSession:
    return OrtSession(folder, providers=["CPUExecutionProvider"], native=False)


@pytest.fixture
def engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    engine = fake_engine(folder)
    monkeypatch.setattr(trt_module, "open_engine", lambda *_: engine)
    return engine


@pytest.fixture
def session(folder: Path, engine: FakeEngine) -> TrtSession:
    return TrtSession(folder)


def _ids(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, length))


def _close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "length"), [(1, 1), (1, 2), (3, 5), (4, MOST_LENGTH), (1, MOST_LENGTH + 1), (2, 67)]
)
def test_run_is_the_model(
    session: TrtSession, reference: OrtSession, batch: int, length: int
) -> None:
    """A sequence longer than the profile takes is read in parts."""
    ids = _ids(batch, length)
    logits, state = session.run(ids)
    expected, expected_state = reference.run(ids)
    assert logits.shape == (batch, length, 256)
    _close(logits, expected)
    for one, other in zip(state.numpy(), expected_state.numpy(), strict=True):
        _close(one, other)
    for one, other in zip(session.advance(ids).numpy(), state.numpy(), strict=True):
        _close(one, other)


def test_any_split_is_the_whole_and_states_stay_as_they_are(
    session: TrtSession, reference: OrtSession
) -> None:
    ids = _ids(2, 12)
    whole, _ = reference.run(ids)
    for split in (1, 5, 11):
        first, state = session.run(ids[:, :split])
        before = state.numpy()
        for _ in range(2):  # the state can be gone on from again
            second, _ = session.run(ids[:, split:], state)
            _close(np.concatenate([first, second], axis=1), whole)
        for one, other in zip(state.numpy(), before, strict=True):
            np.testing.assert_array_equal(one, other)


def test_states_select_concatenate_and_cross_to_numpy(
    session: TrtSession, reference: OrtSession
) -> None:
    ids = _ids(3, 6)
    _, state = session.run(ids)
    again = session.concatenate([state.select([2]), state.select([0, 1])])
    assert again.batch == 3
    more = _ids(3, 4, seed=1)
    _close(session.run(more, again)[0], reference.run(more, reference.run(ids[[2, 0, 1]])[1])[0])
    through = session.state_from_numpy(state.numpy())
    _close(session.run(more, through)[0], session.run(more, state)[0])
    assert not any(array.any() for array in session.initial_state(2).numpy())


def test_stepper_swaps_and_captures_each_direction_once(
    session: TrtSession, engine: FakeEngine, reference: OrtSession
) -> None:
    ids = _ids(3, 30)
    _, state = session.run(ids[:, :6])
    before = state.numpy()
    expected, _ = reference.run(ids)
    stepper = session.stepper(state)
    enqueued = engine.enqueued
    for position in range(6, 30):
        _close(stepper.step(ids[:, position]), expected[:, position])
    assert engine.enqueued - enqueued == 3, "the first step, and one capture a direction"
    assert (engine.gpu.graphs, engine.gpu.launches) == (2, 23)
    for one, other in zip(state.numpy(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    _, after = reference.run(ids)
    for one, other in zip(stepper.state.numpy(), after.numpy(), strict=True):
        _close(one, other)


@pytest.mark.parametrize("how", ["TensorRT says no", "the driver refuses"])
def test_stepper_runs_where_nothing_can_be_captured(
    session: TrtSession, engine: FakeEngine, reference: OrtSession, how: str
) -> None:
    if how == "TensorRT says no":
        engine.capturable = False
    else:
        engine.gpu.capture_fails = True
    ids = _ids(2, 12)
    expected, _ = reference.run(ids)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            stepper = session.stepper(session.initial_state(2))
            for position in range(12):
                _close(stepper.step(ids[:, position]), expected[:, position])
    assert engine.gpu.launches == 0
    # That an engine holds loops is no problem of the machine; a driver that refuses is said once.
    said = ["steps run without CUDA graphs, and slower: CUDA: cannot be captured"]
    assert [str(one.message) for one in caught] == (said if engine.gpu.capture_fails else [])


def test_steps_take_no_memory(session: TrtSession, engine: FakeEngine) -> None:
    stepper = session.stepper(session.initial_state(2))
    for _ in range(5):
        stepper.step(np.array([1, 2]))
    live = len(engine.gpu.live)
    for _ in range(50):
        stepper.step(np.array([1, 2]))
    assert len(engine.gpu.live) == live
    del stepper
    session.run(_ids(1, 3))
    assert not engine.gpu.live, "all is freed with its owner"


def test_generation_is_onnx_runtimes(
    session: TrtSession, engine: FakeEngine, reference: OrtSession
) -> None:
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [4], [5, 6, 7], [9, 9]]
    for options in ({}, {"temperature": 0.9, "top_k": 20, "seed": 3}):
        found, expected = (
            [
                (one.tokens, one.finish_reason)
                for one in s.generate(prompts, max_new_tokens=40, **options)
            ]
            for s in (session, reference)
        )
        assert found == expected
    assert engine.contexts <= 4, "execution contexts are used again"


def test_sessions_and_threads_share_an_engine(
    folder: Path, engine: FakeEngine, reference: OrtSession
) -> None:
    sessions = [TrtSession(folder), TrtSession(folder)]
    assert sessions[0].engine is sessions[1].engine
    expected = reference.generate([[1, 2, 3]], max_new_tokens=30)[0].tokens
    found: list[list[int]] = []

    def work(session: TrtSession) -> None:
        found.append(session.generate([[1, 2, 3]], max_new_tokens=30)[0].tokens)

    threads = [threading.Thread(target=work, args=(sessions[i % 2],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_a_request_outside_the_profiles_names_them(session: TrtSession) -> None:
    for request in (
        lambda: session.run(_ids(5, 3)),
        lambda: session.advance(_ids(5, 3)),
        lambda: session.stepper(session.initial_state(5)),
        lambda: session.generate([[1]] * 5, max_new_tokens=2),
    ):
        with pytest.raises(SessionError, match=r"batch 5 .*batch 1 to 4, length 2 to 8; decode"):
            request()


def test_bad_requests(session: TrtSession, reference: OrtSession) -> None:
    with pytest.raises(SessionError, match="outside the vocabulary"):
        session.run([[256]])
    with pytest.raises(SessionError, match="batch is 0, expected an integer from 1"):
        session.initial_state(0)
    with pytest.raises(SessionError, match="another backend"):
        session.run([[1]], reference.initial_state(1))  # type: ignore[arg-type]
    with pytest.raises(SessionError, match="batch"):
        session.run([[1]], session.initial_state(2))
    with pytest.raises(SessionError, match="has 4"):
        session.state_from_numpy([])
    with pytest.raises(SessionError, match="cannot select"):
        session.initial_state(2).select([2])
    with pytest.raises(SessionError, match="cannot concatenate"):
        session.concatenate([])


def _description(folder: Path, **fields: Any) -> EngineDescription:
    values: dict[str, Any] = {"runtime": "tensorrt_rtx", "runtime_version": "1.7.1", **fields}
    return describe(
        read_metadata(folder),
        profiles=make_profiles((1, 1, 1), (1, 1, 1)),
        plugins={},
        plugin_library=None,
        **values,
    )


def test_a_gpu_that_the_engine_does_not_run_on(folder: Path) -> None:
    gpu = FakeGpu()
    engine_module.check_gpu(_description(folder), gpu)  # type: ignore[arg-type]
    gpu.capability = "9.0"
    with pytest.raises(
        SessionError, match=r"compute capability 9\.0.*8\.0, 8\.6, 8\.9, 12\.0, 12\.1"
    ):
        engine_module.check_gpu(_description(folder), gpu)  # type: ignore[arg-type]
    tied = _description(folder, runtime="tensorrt", compute_capability="8.7")
    with pytest.raises(SessionError, match=r"9\.0.*runs on 8\.7"):
        engine_module.check_gpu(tied, gpu)  # type: ignore[arg-type]
    free = _description(folder, runtime="tensorrt", hardware_compatible=True)
    engine_module.check_gpu(free, gpu)  # type: ignore[arg-type]
    gpu.capability = "7.5"
    with pytest.raises(SessionError, match=r"8\.0 and later"):
        engine_module.check_gpu(free, gpu)  # type: ignore[arg-type]


class FakeLibrary:
    kind = TENSORRT
    version = "10.13.2"


@pytest.mark.parametrize(
    ("built", "compatible", "runs"),
    [
        ("10.13.2", False, True),
        ("10.13.1", False, False),
        ("10.13.1", True, True),
        ("11.0.0", True, False),
        (None, False, True),
    ],
)
def test_an_engine_of_another_version(
    folder: Path, built: str | None, compatible: bool, runs: bool
) -> None:
    description = _description(
        folder, runtime="tensorrt", runtime_version=built, version_compatible=compatible
    )
    if runs:
        engine_module.check_version(description, FakeLibrary())  # type: ignore[arg-type]
        return
    with pytest.raises(SessionError, match=rf"{built} and 10\.13\.2 is installed"):
        engine_module.check_version(description, FakeLibrary())  # type: ignore[arg-type]


def test_an_engine_that_carries_a_library_runs_only_where_the_user_allows_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder cannot: engine.json and the sha256 in it come from whoever wrote the engine."""
    monkeypatch.delenv(HOST_CODE_VARIABLE, raising=False)
    plain, carrying = (_description(folder, version_compatible=value) for value in (False, True))
    check_host_code(tmp_path, plain)
    for setting in (None, "", "0", "yes"):
        if setting is not None:
            monkeypatch.setenv(HOST_CODE_VARIABLE, setting)
        with pytest.raises(EngineError, match=f"run here as code: set {HOST_CODE_VARIABLE}=1"):
            check_host_code(tmp_path, carrying)
    target = _write_engine(folder, tmp_path / "target")
    content = json.loads((target / "engine.json").read_text())
    write_json(target / "engine.json", {**content, "version_compatible": True})
    with pytest.raises(EngineError, match="carries a library of its own"):
        TrtSession(target)
    monkeypatch.setenv(HOST_CODE_VARIABLE, "1")
    check_host_code(tmp_path, carrying)


def test_too_little_gpu_memory_is_told_before_loading(folder: Path) -> None:
    gpu = FakeGpu()
    gpu.free_memory = lambda: 1000  # type: ignore[method-assign]
    with pytest.raises(SessionError, match=r"0 MiB of memory free.*model\.onnx\.data needs"):
        engine_module._deserialise(folder / "model.onnx.data", FakeLibrary(), gpu, False)  # type: ignore[arg-type]


def _write_engine(folder: Path, target: Path) -> Path:
    """A folder whose engine passes every check that is made before a GPU is looked at."""
    import shutil

    shutil.copytree(folder, target)
    head = TENSORRT_RTX.tag + bytes(20) + bytes([1, 7, 1, 116])
    (target / "model.engine").write_bytes(head + bytes(100))
    description = _description(target, engine_sha256=sha256(target / "model.engine"))
    write_json(target / "engine.json", description.to_json())
    assert json.loads((target / "engine.json").read_text())["runtime"] == "tensorrt_rtx"
    return target


def test_no_gpu_is_told_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_: int) -> None:
        raise RuntimeError

    monkeypatch.setattr(cuda_driver._bindings(), "cuInit", absent)
    cuda_driver._driver.cache_clear()
    try:
        with pytest.raises(SessionError, match="there is no NVIDIA GPU here"):
            TrtSession(_write_engine(folder, tmp_path / "out"))
    finally:
        cuda_driver._driver.cache_clear()


@pytest.mark.gpu
def test_a_gpu_that_tensorrt_rtx_does_not_serve_is_named(folder: Path, tmp_path: Path) -> None:
    capability = Gpu().capability
    if capability in (TENSORRT_RTX.capabilities or ()):
        pytest.skip(f"TensorRT-RTX runs on compute capability {capability}")
    with pytest.raises(SessionError, match=rf"compute capability {capability}, .* 8\.6, 8\.9"):
        TrtSession(_write_engine(folder, tmp_path / "out"))


# States that grow


@pytest.fixture(scope="module")
def growing_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    return export(writer_program(Writer().eval()), tmp_path_factory.mktemp("trt") / "growing")


@pytest.fixture
def growing(growing_folder: Path, monkeypatch: pytest.MonkeyPatch) -> TrtSession:
    engine = fake_engine(growing_folder, past=(0, 4, 40))
    monkeypatch.setattr(trt_module, "open_engine", lambda *_: engine)
    return TrtSession(growing_folder)


def test_states_that_grow(growing: TrtSession, growing_folder: Path) -> None:
    reference = OrtSession(growing_folder, providers=["CPUExecutionProvider"], native=False)
    ids = np.random.default_rng(0).integers(0, 20, (2, 30))
    expected, after = reference.run(ids)
    whole, state = growing.run(ids)  # in parts, for the profile takes 8
    _close(whole, expected)
    first, start = growing.run(ids[:, :7])
    second, split = growing.run(ids[:, 7:], start)
    _close(np.concatenate([first, second], axis=1), expected)
    for one, other, third in zip(state.numpy(), split.numpy(), after.numpy(), strict=True):
        _close(one, third)
        _close(other, third)
    stepper = growing.stepper(start.select([1]))
    _close(stepper.step(ids[1:, 7]), expected[1:, 7])
    assert stepper.state.tensors[0].shape[2] == 8
    with pytest.raises(SessionError, match="grown to different lengths"):
        growing.concatenate([start, stepper.state])
    assert growing.initial_state(3).numpy()[0].shape == (3, 2, 0, 8)


def test_a_state_that_has_outgrown_the_engine(growing: TrtSession) -> None:
    _, state = growing.run(np.zeros((1, 41), np.int64))
    with pytest.raises(
        SessionError, match=r"grown to 41 steps, the engine was built for 0 to 40: .*--past"
    ):
        growing.run([[1]], state)


def test_generation_with_a_state_that_grows(growing: TrtSession, growing_folder: Path) -> None:
    reference = OrtSession(growing_folder, providers=["CPUExecutionProvider"], native=False)
    prompts = [[1, 2, 3], [4, 5, 6]]
    expected = [one.tokens for one in reference.generate(prompts, max_new_tokens=10)]
    assert [one.tokens for one in growing.generate(prompts, max_new_tokens=10)] == expected
