"""Mamba-2's block and models: its definition as a plain loop, options, states, sizes, dtypes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.errors import MambaExportError
from mamba_export.models import (
    PUBLISHED_MAMBA2_SIZES,
    LayerState,
    MambaBackbone,
    MambaConfig,
    MambaLM,
    ModelConfig,
    cast,
)
from mamba_export.nn import Mamba2, Mamba2Config

TINY = Mamba2Config(d_model=24, n_layer=2, d_state=8, head_dim=12, n_groups=2)

# Parameters of the released checkpoints, in millions, embeddings counted once.
RELEASED_MILLIONS = {
    "130m": 129.0, "370m": 368.3, "780m": 780.2, "1.3b": 1343.8, "2.7b": 2702.6, "codestral-7b": 7285.4,
}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED_MAMBA2_SIZES)
def test_published_sizes(size: str) -> None:
    config = Mamba2Config.published(size)
    assert (config.head_dim, config.d_state, config.d_conv, config.expand) == (64, 128, 4, 2)
    with torch.device("meta"):
        model = MambaLM(config)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(RELEASED_MILLIONS[size], rel=1e-3)


def test_unknown_size_names_the_published_ones() -> None:
    with pytest.raises(MambaExportError, match=r"130m, 370m, 780m, 1.3b, 2.7b, codestral-7b"):
        Mamba2Config.published("2.8b")


@torch.no_grad()
def plain_block(block: Mamba2, x: Tensor) -> Tensor:
    """The block in float64, a line of the definition at a time, on none of the operators."""
    config = block.config
    parameters = {name: one.double() for name, one in block.named_parameters()}
    heads, width = config.heads, config.n_groups * config.d_state
    projected = F.linear(x.double(), parameters["in_proj.weight"], parameters.get("in_proj.bias"))
    z, xBC, dt = projected.split([config.inner, config.inner + 2 * width, heads], dim=-1)
    padded = F.pad(xBC.transpose(1, 2), (config.d_conv - 1, 0))
    convolved = F.conv1d(
        padded,
        parameters["conv1d.weight"],
        parameters.get("conv1d.bias"),
        groups=config.conv_channels,
    )
    u, B, C = F.silu(convolved.transpose(1, 2)).split([config.inner, width, width], dim=-1)
    dt = F.softplus(dt + parameters["dt_bias"])
    dt = dt.clamp(config.dt_limit_min, config.dt_limit_max)
    A = -torch.exp(parameters["A_log"])
    D = parameters["D"]
    if not config.skip_per_channel:
        D = D.repeat_interleave(config.head_dim)
    y = torch.empty_like(u)
    for row in range(x.shape[0]):
        for head in range(heads):
            group = head * config.n_groups // heads
            at = slice(head * config.head_dim, (head + 1) * config.head_dim)
            of = slice(group * config.d_state, (group + 1) * config.d_state)
            h = torch.zeros(config.head_dim, config.d_state, dtype=torch.float64)
            for t in range(x.shape[1]):
                step = dt[row, t, head]
                h = torch.exp(step * A[head]) * h + step * torch.outer(u[row, t, at], B[row, t, of])
                y[row, t, at] = h @ C[row, t, of] + D[at] * u[row, t, at]
    gate = F.silu(z)
    if not config.gated_norm:
        y = y * gate
    else:
        y = y if config.norm_before_gate else y * gate
        groups = y.unflatten(-1, (config.n_groups, -1))
        groups = groups / torch.sqrt(groups.pow(2).mean(-1, keepdim=True) + config.norm_epsilon)
        y = groups.flatten(-2) * parameters["norm.weight"]
        y = y * gate if config.norm_before_gate else y
    return F.linear(y, parameters["out_proj.weight"], parameters.get("out_proj.bias"))


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one group": {"n_groups": 1},
    "a group a head": {"n_groups": 4},
    "one head": {"n_groups": 1, "head_dim": 48},
    "gate alone": {"gated_norm": False},
    "norm before the gate": {"norm_before_gate": True},
    "skip of each channel": {"skip_per_channel": True},
    "biases": {"bias": True, "conv_bias": False},
    "limits": {"dt_limit_min": 0.02, "dt_limit_max": 0.05},
    "lower limit": {"dt_limit_min": 0.5},
    "shapes": {"d_conv": 2, "expand": 3, "d_state": 5, "head_dim": 9, "n_groups": 2},
    "d_inner": {"d_inner": 36, "head_dim": 6, "n_groups": 3},
    "epsilon": {"norm_epsilon": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@torch.no_grad()
def test_block_is_its_definition(options: dict[str, Any]) -> None:
    block = Mamba2(dataclasses.replace(TINY, **options))
    for parameter in block.parameters():  # every one of them matters
        parameter += 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, 11, 24)
    expected = plain_block(block, x)
    for parts in ((11,), (1,) * 11, (4, 1, 6)):
        state, found = None, []
        for part in x.split(parts, dim=1):
            y, state = block(part, state)
            found.append(y)
        assert (torch.cat(found, 1) - expected).norm() < 1e-5 * expected.norm(), parts


@pytest.mark.parametrize("change", OPTIONS)
def test_fields_go_round(change: str) -> None:
    config = dataclasses.replace(TINY, **OPTIONS[change])
    again = ModelConfig.from_fields(json.loads(json.dumps(config.to_fields(), allow_nan=False)))
    assert again == config


def test_fields_without_a_mixer_are_of_mamba1() -> None:
    fields = dataclasses.asdict(MambaConfig(d_model=8, n_layer=1))
    assert ModelConfig.from_fields(fields) == MambaConfig(d_model=8, n_layer=1)
    with pytest.raises(MambaExportError, match="mixer is 'rwkv', expected one of mamba, mamba2"):
        ModelConfig.from_fields({**fields, "mixer": "rwkv"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head_dim": 7}, "head_dim 7 does not divide the width d_inner 48"),
        ({"n_groups": 3}, "n_groups 3 does not divide the 4 heads"),
        ({"head_dim": 0}, "head_dim is 0, expected an integer from 1"),
        ({"n_groups": 0}, "n_groups is 0, expected an integer from 1"),
        ({"dt_limit_min": 0.2, "dt_limit_max": 0.1}, "dt_limit_max 0.1 is below dt_limit_min 0.2"),
        ({"dt_limit_max": float("inf")}, "dt_limit_max is inf, expected"),
        ({"gated_norm": 1}, "gated_norm is 1, expected true or false"),
    ],
    ids=str,
)
def test_config_names_the_bad_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(MambaExportError, match=words) as caught:
        dataclasses.replace(TINY, **change)
    assert str(caught.value).startswith("config: ")


def test_blocks_take_their_own_configuration() -> None:
    with pytest.raises(
        MambaExportError, match="config is of type MambaConfig: give a Mamba2Config"
    ):
        Mamba2(MambaConfig(d_model=8, n_layer=1))  # type: ignore[arg-type]


def test_initialisation_follows_the_released_code() -> None:
    block = Mamba2(Mamba2Config(d_model=2048, n_layer=1, head_dim=8))
    A = torch.exp(block.A_log.detach())
    assert A.min() >= 1
    assert A.max() <= 16
    assert A.mean() == pytest.approx(8.5, abs=1)
    assert (block.D == 1).all()
    dt = F.softplus(block.dt_bias)
    assert 0.9e-3 < dt.min() < 5e-3
    assert 0.05 < dt.max() < 0.101


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@torch.no_grad()
def test_cast_keeps_channel_parameters_exact(dtype: torch.dtype) -> None:
    model = MambaLM(TINY.replace(vocab_size=64))
    before = [[p.clone() for p in m.channel_parameters()] for m in model.backbone.mixers]
    cast(model, dtype)
    after = [m.channel_parameters() for m in model.backbone.mixers]
    for old_layer, new_layer in zip(before, after, strict=True):
        assert len(new_layer) == 6
        for old, new in zip(old_layer, new_layer, strict=True):
            assert torch.equal(old, new)
    logits, state = model(torch.zeros(1, 3, dtype=torch.int64))
    assert (logits.dtype, state[0].conv.dtype) == (dtype, dtype)
    assert state[0].recurrent.dtype == torch.float32
    low = [LayerState(conv, recurrent.to(dtype)) for conv, recurrent in state]
    assert model(torch.zeros(1, 2, dtype=torch.int64), low)[1][0].recurrent.dtype == dtype


def test_backbone_trains_and_its_states_have_their_shapes() -> None:
    backbone = MambaBackbone(TINY)
    x = torch.randn(2, 17, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = backbone(x)
    y.float().square().sum().backward()
    assert y.shape == x.shape
    assert state[1].conv.shape == (2, 48 + 2 * 2 * 8, 3)
    assert state[1].recurrent.shape == (2, 4, 12, 8)
    gradients = [x.grad, *(p.grad for p in backbone.parameters())]
    assert all(g is not None and torch.isfinite(g).all() and g.any() for g in gradients)


@torch.no_grad()
def test_float64_model_runs() -> None:
    model = cast(MambaLM(TINY.replace(vocab_size=64)), torch.float64)
    logits, state = model(torch.zeros(1, 3, dtype=torch.int64))
    assert logits.dtype == state[0].recurrent.dtype == torch.float64
