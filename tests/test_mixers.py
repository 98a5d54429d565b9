"""The mixers that Mamba is compared with: their formulas, both of their forms, and their exported files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.errors import MambaExportError, SessionError
from mamba_export.models import Mamba, MambaConfig
from mixers.blocks import BLOCKS, MambaBlock
from mixers.hyena import HyenaFilter
from mixers.mixer import SequenceMixer
from mixers.model import MixerModel, export_streaming, export_whole
from mixers.s4d import S4D, hippo_legs_frequencies
from mixers.s6 import S6

MIXERS: dict[str, Callable[[int], SequenceMixer]] = {
    "s4": lambda channels: S4D(channels, d_state=8),
    "s6": lambda channels: S6(channels, d_state=4),
    "hyena": lambda channels: HyenaFilter(channels, longest=256),
}
VOCABULARY = 11
PARTS = ((0, 1), (1, 70), (70, 71), (71, 130))
"""Of a sequence: single steps, and more than one table of S4D's powers."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(block: str, mixer: str, layers: int = 2) -> MixerModel:
    return MixerModel(VOCABULARY, 8, layers, lambda: BLOCKS[block](8, 12, MIXERS[mixer])).eval()


def s4d_by_its_recurrence(layer: S4D, u: Tensor) -> tuple[Tensor, Tensor]:
    """y (batch, length, channels) and the last h (batch, channels, states), step by step in complex128."""
    dt = layer.log_dt.double().exp()[:, None]
    A = torch.complex(-layer.log_A_real.double().exp(), layer.A_imag.double())
    C = torch.view_as_complex(layer.C.double())
    decay = torch.exp(dt * A)
    B = (decay - 1) / A
    h = torch.zeros(u.shape[0], *A.shape, dtype=torch.complex128)
    y = []
    for u_t in u.double().unbind(1):
        h = decay * h + u_t[..., None]
        y.append(2 * (C * B * h).sum(-1).real + layer.D.double() * u_t)
    return torch.stack(y, 1), h


@torch.no_grad()
def test_s4d_in_both_forms_is_its_recurrence() -> None:
    layer, u = S4D(6, d_state=16), torch.randn(2, 300, 6)
    expected, last = s4d_by_its_recurrence(layer, u)
    whole, _ = layer(u)
    torch.testing.assert_close(whole.double(), expected, rtol=1e-5, atol=1e-5)
    state, parts = layer.initial_state(2), []
    for start, end in ((0, 1), (1, 64), (64, 200), (200, 300)):
        y, state = layer(u[:, start:end], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1).double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.complex(*state.double().chunk(2, -1))
    torch.testing.assert_close(found, last, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_s4d_keeps_its_phase_over_a_long_sequence() -> None:
    """The fastest state turns ten thousand times: fp32 phases would be off by a thousandth of a turn."""
    layer = S4D(2, d_state=64)
    layer.log_dt.fill_(np.log(0.1))
    impulse = torch.zeros(1, 4096, 2)
    impulse[:, 0] = 1
    layer.log_A_real.fill_(np.log(1e-3))  # so that the last steps still count
    expected, _ = s4d_by_its_recurrence(layer, impulse)
    size = expected.abs().max().item()
    torch.testing.assert_close(layer(impulse)[0].double(), expected, rtol=0, atol=1e-5 * size)
    y, _ = layer(impulse, layer.initial_state(1))
    # The scan multiplies an fp32 decay 4096 times, whose rounding grows with it.
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4 * size)


def test_s4d_starts_with_the_spectrum_of_hippo_legs() -> None:
    """HiPPO-LegS is normal plus low-rank: A = (-1/2 + S) - P P^T, P_n = sqrt(n + 1/2) (arXiv:2206.11893)."""
    n = 16
    order = np.arange(n)
    root = np.sqrt(2 * order + 1.0)
    legs = -np.tril(root[:, None] * root[None, :], -1) - np.diag(order + 1.0)
    normal = legs + 0.5 * root[:, None] * root[None, :]
    values = np.linalg.eigvals(normal)
    np.testing.assert_allclose(values.real, -0.5, atol=1e-9)
    found = hippo_legs_frequencies(n).numpy()
    np.testing.assert_allclose(found, np.sort(values.imag)[n // 2 :], rtol=1e-9)


@torch.no_grad()
def test_hyena_is_its_convolution() -> None:
    layer, u = HyenaFilter(3, longest=64), torch.randn(2, 40, 3)
    kernel = layer.kernel(40).double()
    expected = layer.D.double() * u.double()
    for t in range(40):
        for s in range(t + 1):
            expected[:, t] += kernel[:, s] * u[:, t - s].double()
    torch.testing.assert_close(layer(u)[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_hyena_refuses_a_sequence_beyond_its_positions() -> None:
    with pytest.raises(
        MambaExportError, match="has 65 tokens, and this Hyena's positions end at 64"
    ):
        HyenaFilter(3, longest=64)(torch.zeros(1, 65, 3))


def test_a_file_of_hyena_refuses_a_sequence_beyond_its_positions(tmp_path: Path) -> None:
    session = OrtSession(export_whole(small("ungated", "hyena", layers=1), tmp_path / "out"))
    session.run(np.zeros((1, 256), np.int64))
    with pytest.raises(SessionError, match="idx=256 must be within") as error:
        session.run(np.zeros((1, 257), np.int64))
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_s6_in_the_mamba_block_is_the_mamba_block() -> None:
    config = MambaConfig(d_model=8, n_layer=1, d_inner=12, d_state=4, dt_rank=2)
    ours = MambaBlock(8, 12, lambda channels: S6(channels, d_state=4, rank=2))
    product = Mamba(config)
    names = {name.replace("mixer.", ""): one for name, one in ours.named_parameters()}
    product.load_state_dict(names)
    x = torch.randn(2, 30, 8)
    found, (conv, recurrent) = ours(x)
    expected, state = product(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(conv, state.conv)
    torch.testing.assert_close(recurrent, state.recurrent)


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_model_is_causal_and_reads_in_parts(block: str, mixer: str) -> None:
    model = small(block, mixer)
    tokens = torch.randint(0, VOCABULARY, (2, 130))
    whole, _ = model(tokens)
    state, parts = model.initial_state(2), []
    for start, end in PARTS:
        logits, state = model(tokens[:, start:end], state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    assert [axis for axis in model.growing() if axis] == [1] * 2 * (mixer == "hyena")


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_learns(block: str, mixer: str) -> None:
    model = small(block, mixer).train()
    logits, _ = model(torch.randint(0, VOCABULARY, (2, 20)))
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
@pytest.mark.parametrize(("block", "mixer"), [("mamba", "s4"), ("h3", "hyena")])
def test_the_recurrent_form_exports_with_its_state(block: str, mixer: str, tmp_path: Path) -> None:
    model = small(block, mixer, layers=1)
    tokens = torch.randint(0, VOCABULARY, (2, 130))
    session = OrtSession(export_streaming(model, tmp_path / "out"))
    state, parts = None, []
    for start, end in PARTS:
        logits, state = session.run(tokens[:, start:end].numpy(), state)
        parts.append(logits)
    expected, _ = model.double()(tokens)
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("mixer", "length"), [("s4", None), ("hyena", 64)])
def test_the_convolution_exports_at_a_fixed_and_at_any_length(
    mixer: str, length: int | None, tmp_path: Path
) -> None:
    model = small("ungated", mixer, layers=1)
    session = OrtSession(export_whole(model, tmp_path / "out", length))
    model.double()
    for size in (64,) if length else (1, 64, 129):
        tokens = torch.randint(0, VOCABULARY, (3, size))
        found, _ = session.run(tokens.numpy())
        np.testing.assert_allclose(found, model(tokens)[0], rtol=1e-4, atol=1e-4)
