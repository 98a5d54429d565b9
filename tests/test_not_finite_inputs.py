"""NaN and infinities that a program is to read: refused where its states would keep them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trt_stand_in import on_engine

import mamba_export
from mamba_export import OrtSession, State
from mamba_export.errors import SessionError
from mamba_export.models import MambaBackbone, MambaConfig


def on_cpu(folder: Path) -> OrtSession:
    return OrtSession(folder, providers=["CPUExecutionProvider"], threads=1)


@pytest.fixture(scope="module")
def sensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = MambaBackbone(MambaConfig(d_model=40, n_layer=1, d_state=4)).eval()
    return mamba_export.export(model, tmp_path_factory.mktemp("finite") / "out", dtype="fp16")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e6])
@pytest.mark.parametrize("channel", [0, 39])
def test_a_sample_is_refused_and_not_read(sensors: Path, number: float, channel: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 40)).astype(np.float32)
    bad = x[:, 1].copy()
    bad[1, channel] = number
    shown = "nan" if np.isnan(number) else "-inf" if number < 0 else "inf"
    words = rf"has {shown} at \[1, {channel}\], and the states .* that fp16 holds as finite ones$"
    session = on_engine(sensors)
    streamer, expected = (session.streamer(session.initial_state(2)) for _ in range(2))
    for step in range(4):
        with np.errstate(over="ignore"), pytest.raises(SessionError, match=words):
            streamer.step(bad)
        np.testing.assert_array_equal(streamer.step(x[:, step]), expected.step(x[:, step]))
    whole = x.copy()
    whole[1, 3, channel] = number
    words = words.replace("1, ", "1, 3, ")
    for read in (session.run, session.advance):
        with np.errstate(over="ignore"), pytest.raises(SessionError, match=words):
            read(whole)


class Masked(nn.Module):
    """A sum over what a mask of zeros and minus infinity lets through."""

    def forward(self, x: Tensor, mask: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.exp(mask)
        return x * weights[..., None] + past[:, None], past + (x * weights[..., None]).sum(1)


def test_masks_may_hold_infinities_and_no_nan(tmp_path: Path) -> None:
    dynamic = {0: "batch", 1: "length"}
    folder = mamba_export.export(
        Masked(),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.zeros(2, 4)),
        output=tmp_path / "out",
        dynamic_shapes={"x": dynamic, "mask": dynamic, "past": {0: "batch"}},
        output_names=["y", "present"],
        states=[State("past", "present")],
    )
    session, x = on_cpu(folder), np.ones((1, 3, 4), np.float32)
    y, state = session.run({"x": x, "mask": np.array([[0, -np.inf, 0]], np.float32)})
    np.testing.assert_array_equal(y[0, :, 0], [1, 0, 1])
    np.testing.assert_array_equal(state.numpy()[0], np.full((1, 4), 2))
    with pytest.raises(SessionError, match=r"mask has nan at \[0, 1\]"):
        session.run({"x": x, "mask": np.array([[0, np.nan, 0]], np.float32)}, state)


def test_a_program_without_states_reads_what_it_is_given(tmp_path: Path) -> None:
    folder = mamba_export.export(nn.ReLU(), (torch.zeros(3),), output=tmp_path / "out")
    y, _ = on_cpu(folder).run(np.array([np.nan, np.inf, -1], np.float32))
    np.testing.assert_array_equal(y, [np.nan, np.inf, 0])
