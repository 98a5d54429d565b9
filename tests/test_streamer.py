"""Programs without tokens, one sample at a time: on the CPU, in CUDA graphs of stand-ins, and of a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_provider import NEEDS_CUDA_KERNELS
from cuda_stand_in import on_graphs
from torch import Tensor, nn
from trt_stand_in import on_engine

import mamba_export
from mamba_export import OrtSession, State, TrtSession
from mamba_export.backends.onnxruntime.streamer import GraphStreamer, OrtStreamer
from mamba_export.backends.tensorrt.streamer import TrtStreamer
from mamba_export.contract.program import Tokens, Value
from mamba_export.errors import SessionError
from mamba_export.export import export
from mamba_export.generation.values import check_samples
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import MambaBackbone, MambaConfig

needs_kernels = pytest.mark.skipif(CUSTOM_OPS.path() is None, reason=CUSTOM_OPS.why_absent())


class Filter(nn.Module):
    """Two outputs, one of integers, and a state that is read again after it was written."""

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        present = 0.5 * past + x.mean(1)
        return x * past[:, None] + torch.tanh(present)[:, None], (x > 0).int(), present


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mamba_export.export(
        Filter(),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4)),
        output=tmp_path_factory.mktemp("filter") / "out",
        dynamic_shapes={"x": {0: "batch", 1: "length"}, "past": {0: "batch"}},
        output_names=["y", "positive", "present"],
        states=[State("past", "present", start=1.0)],
    )


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> tuple[MambaBackbone, Path]:
    torch.manual_seed(0)
    model = MambaBackbone(MambaConfig(d_model=8, n_layer=2, d_state=4)).eval()
    return model, export(model, tmp_path_factory.mktemp("backbone") / "out")


def on_cpu(folder: Path) -> OrtSession:
    return OrtSession(folder, providers=["CPUExecutionProvider"], threads=1)


def on_stand_in(folder: Path) -> OrtSession:
    return on_graphs(folder)[0]


def on_gpu(folder: Path) -> OrtSession:
    return OrtSession(folder, providers=["CUDAExecutionProvider"])


OPEN = [
    on_cpu,
    on_engine,
    pytest.param(on_stand_in, marks=needs_kernels),
    pytest.param(on_gpu, marks=NEEDS_CUDA_KERNELS),
]
Open = Callable[[Path], OrtSession | TrtSession]


def check_captured(session: OrtSession | TrtSession, streamer: Any) -> None:
    """On a GPU, and on what stands for one, steps were replayed."""
    if isinstance(session, TrtSession):
        assert isinstance(streamer, TrtStreamer)
        assert streamer.is_captured
    elif session._model.gpu is None:
        assert isinstance(streamer, OrtStreamer)
    else:
        assert isinstance(streamer, GraphStreamer)
        assert streamer.is_captured, streamer.capture_problem


@pytest.mark.parametrize("open_session", OPEN)
def test_samples_one_by_one_are_the_whole(
    backbone: tuple[MambaBackbone, Path], open_session: Open
) -> None:
    model, folder = backbone
    x = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, after = model.double()(x.double())
    model.float()
    session = open_session(folder)
    state = on_cpu(folder).run(x[:, :7])[1]
    start = session.state_from_numpy(state.numpy())
    kept = start.numpy()
    streamer = session.streamer(start)
    for step in range(7, 20):
        y = streamer.step(x[:, step])
        truth = expected[:, step].numpy()
        assert np.linalg.norm(y - truth) <= 1e-5 * np.linalg.norm(truth)
    found = streamer.state.numpy()
    for array, truth in zip(found, (tensor for layer in after for tensor in layer), strict=True):
        assert np.linalg.norm(array - truth.numpy()) <= 1e-5 * np.linalg.norm(truth.numpy())
    for array, before in zip(start.numpy(), kept, strict=True):
        np.testing.assert_array_equal(array, before)
    check_captured(session, streamer)


@pytest.mark.parametrize("open_session", OPEN)
def test_several_outputs_and_a_start_that_is_not_zero(filtered: Path, open_session: Open) -> None:
    x = np.random.default_rng(2).standard_normal((1, 6, 4)).astype(np.float32)
    session = open_session(filtered)
    streamer, past = session.streamer(), np.ones((1, 4))
    for step in range(6):
        found = streamer.step(x[:, step].tolist())
        present = 0.5 * past + x[:, step]
        np.testing.assert_allclose(
            found["y"], x[:, step] * past + np.tanh(present), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(found["positive"], x[:, step] > 0)
        assert found["positive"].dtype == np.int32
        past = present
    np.testing.assert_allclose(streamer.state.numpy()[0], past, rtol=1e-6)
    check_captured(session, streamer)


@pytest.mark.parametrize("open_session", OPEN)
def test_streamers_do_not_disturb_each_other(filtered: Path, open_session: Open) -> None:
    """Nor does one that is gone: the memory of its samples may serve another."""
    session, generator = open_session(filtered), np.random.default_rng(4)
    streamers = [(session.streamer(), np.ones((1, 4))) for _ in range(3)]
    for step in range(8):
        if step == 4:
            streamers[0] = (session.streamer(), np.ones((1, 4)))
        for index, (streamer, past) in enumerate(streamers):
            x = generator.standard_normal((1, 4)).astype(np.float32)
            present = 0.5 * past + x
            expected = x * past + np.tanh(present)
            np.testing.assert_allclose(streamer.step(x)["y"], expected, rtol=1e-5, atol=1e-6)
            streamers[index] = (streamer, present)


@needs_kernels
def test_steps_that_cannot_be_captured_run_all_the_same(filtered: Path) -> None:
    session, stream, _ = on_graphs(filtered)
    stream.problem = "no capture today"
    streamer, plain = session.streamer(), on_cpu(filtered).streamer()
    for step in range(4):
        sample = np.full((1, 4), step)
        np.testing.assert_array_equal(streamer.step(sample)["y"], plain.step(sample)["y"])
    assert isinstance(streamer, GraphStreamer)
    assert not streamer.is_captured
    assert streamer.capture_problem == "no capture today"


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.zeros((1, 5)), r"x has shape \(1, 5\), expected \(1, 4\): one sample of each sequence"),
        (np.zeros((2, 4)), r"x has shape \(2, 4\), expected \(1, 4\)"),
        (np.zeros(4), r"x has shape \(4,\)"),
        ([["a"] * 4], "x has dtype <U1, expected numbers"),
        ([[1, 2], [3]], "x is ragged"),
    ],
)
def test_samples_that_are_refused(filtered: Path, sample: Any, words: str) -> None:
    for open_session in (on_cpu, on_engine):
        with pytest.raises(SessionError, match=words):
            open_session(filtered).streamer().step(sample)


def test_programs_that_are_refused(filtered: Path) -> None:
    metadata = on_cpu(filtered).metadata
    [x], (y, _), [past] = metadata.inputs, metadata.outputs, metadata.states
    for changes in (
        {"tokens": Tokens(20)},
        {"inputs": (x, x)},
        {"inputs": (Value("x", "fp32", ("batch", 1, 4)),)},
        {"outputs": (Value("y", "fp32", ("batch", 4)),)},
        {"outputs": (y, Value("z", "fp32", ("batch", "length", "other")))},
        {"states": ()},
        {"states": (dataclasses.replace(past, grows=1),)},
    ):
        with pytest.raises(SessionError, match="drive it with run"):
            check_samples(dataclasses.replace(metadata, **changes))


def test_states_that_are_refused(filtered: Path, backbone: tuple[MambaBackbone, Path]) -> None:
    for open_session, words in ((on_cpu, "state is a str"), (on_engine, "another backend's")):
        session = open_session(filtered)
        with pytest.raises(SessionError, match=words):
            session.streamer("nothing")
        with pytest.raises(SessionError, match="the model has 1"):
            session.streamer(open_session(backbone[1]).initial_state(1))
    with pytest.raises(SessionError, match="batch 5"):
        session.streamer(session.initial_state(5))  # its engine is for 4
