"""The operators on a CPU: against the float64 reference, under autograd, autocast and torch.compile."""

from __future__ import annotations

import pytest
import torch
from cases import (
    CONV,
    FP32_BOUND,
    ROUNDING_FLOOR,
    SCAN,
    conv_inputs,
    double,
    error,
    scan_inputs,
)
from torch import Tensor

from mamba_export.operators import (
    causal_conv1d,
    causal_conv1d_reference,
    selective_scan,
    selective_scan_reference,
)
from mamba_export.operators.dispatch import BACKEND_VARIABLE


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000])
def test_scan_matches_float64_reference(length: int, batch: int, reverse: bool) -> None:
    inputs = scan_inputs(batch, length)
    for output, truth in zip(
        SCAN(*inputs, True, reverse),
        selective_scan_reference(*double(inputs), True, reverse),
        strict=True,
    ):
        assert error(output, truth) <= FP32_BOUND


@pytest.mark.parametrize("gate", [True, False], ids=["gate", "no gate"])
@pytest.mark.parametrize("n_groups", [1, 2, 8])
@pytest.mark.parametrize("d_state", [1, 8, 16, 64, 256])
def test_scan_shapes(d_state: int, n_groups: int, gate: bool) -> None:
    inputs = scan_inputs(2, 20, 8, d_state, n_groups, gate=gate)
    for output, truth in zip(SCAN(*inputs), selective_scan_reference(*double(inputs)), strict=True):
        assert error(output, truth) <= FP32_BOUND


@pytest.mark.parametrize("shift", [-30.0, -10.0, 10.0, 30.0])
def test_scan_extreme_steps(shift: float) -> None:
    inputs = scan_inputs(2, 65, delta_shift=shift)
    for output, truth in zip(SCAN(*inputs), selective_scan_reference(*double(inputs)), strict=True):
        assert torch.isfinite(output).all()
        assert error(output, truth) <= FP32_BOUND


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_scan_low_precision(dtype: torch.dtype) -> None:
    inputs = scan_inputs(2, 65, dtype=dtype)
    truth = selective_scan_reference(*double(inputs))
    reference = selective_scan_reference(*inputs)
    output = SCAN(*inputs)
    assert output[0].dtype == dtype
    assert output[1].dtype == torch.float32
    allowed = 2 * error(reference[0], truth[0]) + ROUNDING_FLOOR[dtype]
    assert error(output[0], truth[0]) <= allowed
    assert error(output[1], truth[1]) <= FP32_BOUND


@pytest.mark.parametrize("parts", [(1,) * 40, (20, 20), (39, 1), (1, 38, 1)], ids=str)
def test_split_equals_whole(parts: tuple[int, ...]) -> None:
    inputs = scan_inputs(2, 40)
    whole, last = SCAN(*inputs)
    state, outputs = inputs[8], []
    for start, size in zip(torch.tensor((0, *parts)).cumsum(0).tolist(), parts, strict=False):
        u, delta, A, B, C, D, z, bias, _ = inputs
        cut = slice(start, start + size)
        y, state = SCAN(
            u[:, cut], delta[:, cut], A, B[:, cut], C[:, cut], D, z[:, cut], bias, state
        )
        outputs.append(y)
    assert error(torch.cat(outputs, 1), whole) <= FP32_BOUND
    assert error(state, last) <= FP32_BOUND


def test_scan_takes_strided_inputs() -> None:
    inputs = scan_inputs(2, 33)
    strided = [
        t if t is None or t.dim() < 3 else torch.cat([t, t], -1)[..., : t.shape[-1]] for t in inputs
    ]
    strided[0] = inputs[0].transpose(1, 2).contiguous().transpose(1, 2)
    for output, expected in zip(SCAN(*strided), SCAN(*inputs), strict=True):
        assert error(output, expected) <= FP32_BOUND


def test_exact_zero_order_hold_converges_to_euler_for_small_steps() -> None:
    inputs = double(scan_inputs(1, 30, delta_shift=-12.0))
    euler = selective_scan_reference(*inputs)[0]
    exact = selective_scan_reference(*inputs, exact_zoh=True)[0]
    assert 0 < error(euler, exact) < 1e-3


def test_exact_zero_order_hold_solves_the_differential_equation() -> None:
    # h' = A h + B u with constant u has a closed solution: the textbook's discretisation is exact there.
    dt, steps = 0.3, 7
    one = torch.ones(1, steps, 1, dtype=torch.float64)
    a = torch.tensor([[-1.7]], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    _, state = selective_scan_reference(
        one, dt * one, a, one[..., None], one[..., None], zero, None, zero, torch.zeros(1, 1, 1).double(),
        delta_softplus=False, exact_zoh=True,
    )  # fmt: skip
    expected = (torch.exp(a * dt * steps) - 1) / a
    torch.testing.assert_close(state[0], expected)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("gate", [True, False], ids=["gate", "no gate"])
@pytest.mark.parametrize("softplus", [True, False], ids=["softplus", "plain step"])
def test_scan_gradcheck(softplus: bool, gate: bool, reverse: bool) -> None:
    inputs = scan_inputs(2, 5, 4, 3, 2, gate=gate, dtype=torch.float64)
    if not softplus:  # a negative step would grow without bound
        inputs[1], inputs[7] = 0.1 * inputs[1].abs(), inputs[7].abs()
    for tensor in inputs:
        if tensor is not None:
            tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: SCAN(*t, softplus, reverse), inputs)


def test_scan_gradients_across_chunks() -> None:
    inputs = scan_inputs(2, 150, 8, 16, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in inputs]
    y, last = SCAN(*leaves)
    weights = torch.randn_like(y), torch.randn_like(last)
    expected_y, expected_last = selective_scan_reference(*leaves)
    found = torch.autograd.grad((y * weights[0]).sum() + (last * weights[1]).sum(), leaves)
    truth = torch.autograd.grad(
        (expected_y * weights[0]).sum() + (expected_last * weights[1]).sum(), leaves
    )
    for name, a, b in zip(
        ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"],
        found,
        truth,
        strict=True,
    ):
        assert error(a, b) <= 1e-12, name


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "linear"])
@pytest.mark.parametrize("length", [1, 2, 5, 129])
@pytest.mark.parametrize("d_conv", [2, 4])
def test_conv_matches_reference(d_conv: int, length: int, silu: bool, reverse: bool) -> None:
    inputs = conv_inputs(length=length, d_conv=d_conv)
    truth = causal_conv1d_reference(*double(inputs), silu, reverse)
    for output, expected in zip(CONV(*inputs, silu, reverse), truth, strict=True):
        assert error(output, expected) <= FP32_BOUND


def test_conv_is_torchs_depthwise_convolution() -> None:
    x, weight, bias, _ = conv_inputs(length=20)
    expected = torch.nn.functional.conv1d(
        x.transpose(1, 2), weight.unsqueeze(1), bias, padding=3, groups=8
    )[..., :20]
    y, _ = causal_conv1d(x, weight, bias, silu=False)
    torch.testing.assert_close(y, expected.transpose(1, 2))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 6])
def test_conv_gradcheck(length: int, reverse: bool) -> None:
    inputs = [
        t.requires_grad_() for t in conv_inputs(length=length, channels=3, dtype=torch.float64)
    ]
    assert torch.autograd.gradcheck(lambda *t: CONV(*t, True, reverse), inputs)


@pytest.mark.parametrize("gate", [True, False], ids=["gate", "no gate"])
def test_scan_opcheck(gate: bool) -> None:
    inputs = scan_inputs(2, 5, gate=gate)
    for tensor in inputs:
        if tensor is not None:
            tensor.requires_grad_()
    torch.library.opcheck(SCAN.default, tuple(inputs))
    torch.library.opcheck(SCAN.default, (*inputs[:-1], None))


def test_conv_opcheck() -> None:
    torch.library.opcheck(CONV.default, tuple(t.requires_grad_() for t in conv_inputs()))


def test_autocast_casts_sequences_and_keeps_parameters() -> None:
    inputs = [t.requires_grad_() for t in scan_inputs(2, 20)]
    with torch.autocast("cpu", torch.bfloat16):
        y, last = SCAN(*inputs)
        x, _ = CONV(*conv_inputs())
    assert (y.dtype, last.dtype, x.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    y.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in inputs)
    truth = selective_scan_reference(*double([t.detach() for t in inputs]))[0]
    assert error(y, truth) < 0.02


def test_torch_compile_keeps_the_operators_whole() -> None:
    inputs = [t.requires_grad_() for t in scan_inputs(2, 20)]

    def function(*tensors: Tensor) -> Tensor:
        y, last = SCAN(*tensors)
        return y.sin().sum() + last.sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(function(*inputs), inputs)
    found = torch.autograd.grad(compiled(*inputs), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_wrappers_fill_in_what_is_absent() -> None:
    u, delta, A, B, C, *_ = scan_inputs(2, 10)
    y, last = selective_scan(u, delta, A, B[:, :, 0], C[:, :, 0])
    zeros = torch.zeros(8)
    expected = selective_scan_reference(
        u, delta, A, B, C, zeros, None, zeros, torch.zeros(2, 8, 16)
    )
    torch.testing.assert_close(y, expected[0])
    torch.testing.assert_close(last, expected[1])


def test_environment_variable_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = scan_inputs(2, 10)
    automatic = SCAN(*inputs)[0]
    monkeypatch.setenv(BACKEND_VARIABLE, "reference")
    torch.testing.assert_close(SCAN(*inputs)[0], automatic)
    monkeypatch.setenv(BACKEND_VARIABLE, "triton")
    with pytest.raises(ValueError, match="needs Triton and CUDA tensors"):
        SCAN(*inputs)
    monkeypatch.setenv(BACKEND_VARIABLE, "fast")
    with pytest.raises(ValueError, match="use one of auto, reference, cpu, native, triton"):
        SCAN(*inputs)


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, torch.randn(2, 0, 8), "u has length 0"),
        (0, torch.randn(2, 8), "u has 2 dimensions"),
        (1, torch.randn(2, 4, 8), r"delta has shape \(2, 4, 8\), expected \(2, 5, 8\)"),
        (2, torch.randn(16), "A has shape"),
        (3, torch.randn(2, 5, 16), "B has shape"),
        (3, torch.randn(2, 5, 3, 16), "n_groups 3 .* does not divide d_inner 8"),
        (6, torch.randn(2, 5, 8).half(), "z is torch.float16, expected torch.float32"),
        (8, torch.randn(3, 8, 16), "initial_state has shape"),
        (8, torch.randn(2, 8, 16).half(), "initial_state is torch.float16"),
    ],
    ids=[
        "empty",
        "rank",
        "length",
        "A",
        "B rank",
        "groups",
        "z dtype",
        "state batch",
        "state dtype",
    ],
)
def test_scan_refuses(index: int, bad: Tensor, message: str) -> None:
    inputs = scan_inputs()
    inputs[index] = bad
    with pytest.raises(ValueError, match=message):
        SCAN(*inputs)


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, torch.randn(2, 0, 8), "x has length 0"),
        (1, torch.randn(7, 4), r"weight has shape \(7, 4\)"),
        (3, torch.randn(2, 8, 2), "initial_state has shape"),
    ],
    ids=["empty", "weight", "state"],
)
def test_conv_refuses(index: int, bad: Tensor, message: str) -> None:
    inputs = conv_inputs()
    inputs[index] = bad
    with pytest.raises(ValueError, match=message):
        CONV(*inputs)
