"""A whole layer of Mamba-2 as one operator: its definition against transformers' layer, splits, dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Block

from mamba_export import contract
from mamba_export.operators.mamba2_layer.reference import mamba2_layer_reference
from mamba_export.verify.cases import Case, draw

NAME = contract.MAMBA2_LAYER.name


def block(n_groups: int, time_step_limit: tuple[float, float] = (0.0, float("inf"))) -> Mamba2Block:
    """transformers' layer in float64: 4 heads of 8 channels, random everywhere."""
    torch.manual_seed(n_groups)
    config = Mamba2Config(
        hidden_size=16, num_heads=4, head_dim=8, expand=2, state_size=6, n_groups=n_groups,
        conv_kernel=3, chunk_size=5, time_step_limit=time_step_limit, num_hidden_layers=1,
        residual_in_fp32=False,
    )  # fmt: skip
    made = Mamba2Block(config, layer_idx=0).double().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + ("norm" in name))
    return made


def tensors_of(made: Mamba2Block) -> tuple[Tensor, ...]:
    """The layer's weights, in the contract's order."""
    mixer = made.mixer
    return (
        made.norm.weight, mixer.in_proj.weight.T, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias,
        mixer.dt_bias, -torch.exp(mixer.A_log), mixer.D.unsqueeze(1),
        mixer.norm.weight.reshape(mixer.n_groups, -1, mixer.head_dim), mixer.out_proj.weight.T,
    )  # fmt: skip


def states(batch: int, made: Mamba2Block) -> tuple[Tensor, Tensor]:
    mixer = made.mixer
    conv = torch.zeros(batch, mixer.conv_dim, mixer.conv_kernel_size - 1, dtype=torch.float64)
    recurrent = torch.zeros(batch, mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)
    return conv, recurrent.double()


def layer(
    made: Mamba2Block, hidden: Tensor, past: tuple[Tensor, Tensor], limits: tuple[float, float]
) -> tuple[Tensor, ...]:
    return mamba2_layer_reference(
        hidden, *tensors_of(made), *past, made.norm.variance_epsilon,
        made.mixer.norm.variance_epsilon, *limits,
    )  # fmt: skip


@pytest.mark.parametrize("limits", [(0.0, 3e38), (0.2, 0.9)], ids=["dt", "limited dt"])
@pytest.mark.parametrize("n_groups", [1, 2])
@torch.no_grad()
def test_the_definition_is_transformers_layer(n_groups: int, limits: tuple[float, float]) -> None:
    made = block(n_groups, limits)
    hidden = torch.randn(2, 17, 16, dtype=torch.float64)
    expected = made(hidden)
    expected = expected[0] if isinstance(expected, tuple) else expected
    found, *_ = layer(made, hidden, states(2, made), limits)
    # Theirs is fp32 inside.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_any_split_is_the_whole() -> None:
    made = block(2)
    hidden = torch.randn(2, 17, 16, dtype=torch.float64)
    limits = (0.0, 3e38)
    whole, *last = layer(made, hidden, states(2, made), limits)
    past, parts = states(2, made), []
    for part in hidden.split([9, 1, 7], dim=1):
        y, *past = layer(made, part, tuple(past), limits)
        parts.append(y)
    torch.testing.assert_close((torch.cat(parts, 1), *past), (whole, *last))


def arguments(case: Case, dtype: torch.dtype, **chosen: torch.dtype) -> list[Tensor]:
    """Random inputs of a case; ``chosen``: dtypes of the classes R and S."""
    classes = {"T": dtype, "fp32": torch.float32, "R": torch.float32, "S": torch.float32, **chosen}
    inputs = draw(case, seed=0)
    return [inputs[row.name].to(classes[row.dtype]) for row in contract.MAMBA2_LAYER.inputs]


@pytest.mark.parametrize("low", [{}, {"R": torch.bfloat16}, {"S": torch.bfloat16}])
def test_the_operator_is_its_reference(low: dict[str, torch.dtype]) -> None:
    inputs = arguments(Case.of(NAME, n_groups=2, d_skip=8), torch.bfloat16, **low)
    found = torch.ops.mamba_export.mamba2_layer(*inputs, 1e-5, 1e-5, 0.01, 2.0)
    expected = mamba2_layer_reference(*inputs, 1e-5, 1e-5, 0.01, 2.0)
    kinds = [low.get("R", torch.float32), torch.bfloat16, low.get("S", torch.float32)]
    assert [one.dtype for one in found] == kinds
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), wanted.float(), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("in_proj_weight", lambda t: t[:, 1:], r"in_proj_weight has shape \(12, 65\), expected \(12, 66\)"),
        ("conv_state", lambda t: t[:, 1:], r"conv_state has shape \(2, 47, 3\), expected \(2, 48, 3\)"),
        ("D", lambda t: t.repeat(1, 3), "d_skip 3 .from D. does not divide head_dim 8"),
        ("recurrent_state", lambda t: t.half(), "recurrent_state is torch.float16, expected torch.float32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name: str, change: object, text: str) -> None:
    inputs = arguments(Case.of(NAME), torch.float32)
    index = [row.name for row in contract.MAMBA2_LAYER.inputs].index(name)
    inputs[index] = change(inputs[index])  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"mamba2_layer: {text}"):
        torch.ops.mamba_export.mamba2_layer(*inputs)
