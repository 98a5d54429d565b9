"""Blocks and models: states, sizes, initialisation, dtypes."""

from __future__ import annotations

import pytest
import torch

from mamba_export.errors import MambaExportError
from mamba_export.models import (
    PUBLISHED_SIZES,
    LayerState,
    MambaBackbone,
    MambaConfig,
    MambaLM,
    cast,
)

# Parameters of the released checkpoints, in millions, embeddings counted once.
RELEASED_MILLIONS = {
    "130m": 129.1, "370m": 371.5, "790m": 793.2, "1.4b": 1372.2, "2.8b": 2768.3, "falcon-7b": 7272.7,
}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED_SIZES)
def test_published_sizes(size: str) -> None:
    with torch.device("meta"):
        model = MambaLM(MambaConfig.published(size))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(RELEASED_MILLIONS[size], rel=1e-3)


def test_unknown_size_names_the_published_ones() -> None:
    with pytest.raises(MambaExportError, match=r"130m, 370m, 790m, 1.4b, 2.8b, falcon-7b"):
        MambaConfig.published("3b")


@pytest.mark.parametrize(
    ("change", "name"),
    [({"d_model": 0}, "d_model"), ({"d_conv": 1}, "d_conv"), ({"dt_rank": "big"}, "dt_rank")],
    ids=str,
)
def test_config_names_the_bad_field(change: dict, name: str) -> None:
    with pytest.raises(MambaExportError, match=f"config: {name}"):
        MambaConfig(**{"d_model": 8, "n_layer": 1, **change})


@pytest.mark.parametrize("parts", [(1,) * 30, (15, 15), (29, 1)], ids=["steps", "halves", "tail"])
@torch.no_grad()
def test_any_split_equals_the_whole(tiny_model: MambaLM, parts: tuple[int, ...]) -> None:
    ids = torch.randint(0, 256, (2, 30))
    whole, last = tiny_model(ids)
    state, outputs = None, []
    for piece in ids.split(parts, dim=1):
        logits, state = tiny_model(piece, state)
        outputs.append(logits)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-4, atol=1e-4)
    for found, expected in zip(state, last, strict=True):
        torch.testing.assert_close(found.recurrent, expected.recurrent, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.conv, expected.conv, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_last_logits_only(tiny_model: MambaLM) -> None:
    ids = torch.randint(0, 256, (2, 9))
    torch.testing.assert_close(
        tiny_model(ids, last_logits_only=True)[0], tiny_model(ids)[0][:, -1:]
    )


def test_backbone_takes_continuous_inputs_of_any_length() -> None:
    backbone = MambaBackbone(MambaConfig(d_model=16, n_layer=2, d_state=8, bcdt_norm_epsilon=1e-6))
    for length in (1, 17):
        x = torch.randn(2, length, 16, requires_grad=True)
        y, state = backbone(x)
        y.sum().backward()
        assert y.shape == x.shape
        assert x.grad is not None
        assert isinstance(state[0], LayerState)
        assert state[1].recurrent.shape == (2, 32, 8)


def test_initialisation_follows_the_paper() -> None:
    config = MambaConfig(d_model=64, n_layer=3)
    mixer = MambaBackbone(config).mixers[0]
    torch.testing.assert_close(-torch.exp(mixer.A_log[5]), -torch.arange(1.0, 17))
    assert (mixer.D == 1).all()
    dt = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert 0.9e-3 < dt.min() < 5e-3
    assert 0.05 < dt.max() < 0.101
    assert mixer.dt_proj.weight.shape == (128, 4)  # dt_rank "auto": ceil(64 / 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@torch.no_grad()
def test_cast_keeps_channel_parameters_exact(tiny_config: MambaConfig, dtype: torch.dtype) -> None:
    model = MambaLM(tiny_config)
    before = [[p.clone() for p in m.channel_parameters()] for m in model.backbone.mixers]
    cast(model, dtype)
    after = [m.channel_parameters() for m in model.backbone.mixers]
    for old_layer, new_layer in zip(before, after, strict=True):
        for old, new in zip(old_layer, new_layer, strict=True):
            assert new.dtype == torch.float32
            assert torch.equal(old, new)
    logits, state = model(torch.zeros(1, 3, dtype=torch.int64))
    assert logits.dtype == dtype
    assert state[0].conv.dtype == dtype
    assert state[0].recurrent.dtype == torch.float32


@torch.no_grad()
def test_float64_model_runs(tiny_config: MambaConfig) -> None:
    model = cast(MambaLM(tiny_config), torch.float64)
    logits, state = model(torch.zeros(1, 3, dtype=torch.int64))
    assert logits.dtype == state[0].recurrent.dtype == torch.float64


def test_trains_under_autocast(tiny_config: MambaConfig) -> None:
    model = MambaLM(tiny_config)
    ids = torch.randint(0, 256, (2, 17))
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_refusals(tiny_model: MambaLM) -> None:
    with pytest.raises(ValueError, match="length >= 1"):
        tiny_model(torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="state has 1 layers, the model has 2"):
        tiny_model(torch.zeros(1, 1, dtype=torch.int64), tiny_model.initial_state(1)[:1])
    with pytest.raises(ValueError, match="initial_state has shape"):
        tiny_model(torch.zeros(1, 1, dtype=torch.int64), tiny_model.initial_state(2))
    with pytest.raises(ValueError, match="needs vocab_size"):
        MambaLM(MambaConfig(d_model=8, n_layer=1))
