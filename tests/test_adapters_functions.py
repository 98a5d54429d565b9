"""The adapters' functions against their documented definitions, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import adapter_definitions as definitions
import numpy as np
import pytest
import torch
from torch import Tensor

from mamba_export import adapters

SIZES = [(1, 6, 1, 1), (2, 12, 7, 3), (3, 6, 33, 16), (1, 12, 5, 8)]
"""batch, d_inner, length, d_state."""


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with adapters.installed():
        yield


def interface() -> Any:
    from mamba_ssm.ops import selective_scan_interface

    return selective_scan_interface


def wide(*tensors: Any) -> list[Any]:
    return [None if t is None else t.detach().double().numpy() for t in tensors]


def assert_close(found: Tensor, exact: np.ndarray, bound: float = 1e-5) -> None:
    assert found.shape == exact.shape
    error = np.linalg.norm(found.detach().double().numpy() - exact)
    assert error <= bound * max(np.linalg.norm(exact), 1e-6)


def scan_inputs(batch: int, channels: int, length: int, states: int) -> dict[str, Any]:
    return {
        "u": torch.randn(batch, channels, length),
        "delta": torch.randn(batch, channels, length),
        "A": -torch.rand(channels, states) - 0.1,
        "B": torch.randn(batch, states, length),
        "C": torch.randn(batch, states, length),
        "D": torch.randn(channels),
        "z": torch.randn(batch, channels, length),
        "delta_bias": torch.randn(channels),
    }


def of_kind(kind: str, batch: int, channels: int, length: int, states: int) -> Tensor:
    shape = {
        "constant": (channels, states),
        "varying": (batch, states, length),
        "two groups": (batch, 2, states, length),
        "three groups": (batch, 3, states, length),
    }
    return torch.randn(shape[kind])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(
    ("of_B", "of_C"),
    [
        ("varying", "varying"),
        ("two groups", "two groups"),
        ("constant", "varying"),
        ("varying", "constant"),
        ("constant", "constant"),
        ("two groups", "three groups"),
    ],
)
@pytest.mark.parametrize("name", ["selective_scan_fn", "selective_scan_ref"])
def test_selective_scan(name: str, of_B: str, of_C: str, sizes: tuple[int, int, int, int]) -> None:
    inputs = scan_inputs(*sizes)
    inputs |= {"B": of_kind(of_B, *sizes), "C": of_kind(of_C, *sizes)}
    y, state = getattr(interface(), name)(
        *inputs.values(), delta_softplus=True, return_last_state=True
    )
    exact_y, exact_state = definitions.selective_scan(*wide(*inputs.values()), True)
    assert_close(y, exact_y)
    assert_close(state, exact_state)


@pytest.mark.parametrize("absent", ["D", "z", "delta_bias"])
def test_selective_scan_without(absent: str) -> None:
    inputs = scan_inputs(2, 6, 9, 4) | {absent: None}
    inputs["delta"] = inputs["delta"].abs() + 1.5  # without softplus a step is not negative
    inputs["delta_bias"] = None if absent == "delta_bias" else inputs["delta_bias"].clamp(-1, 1)
    y = interface().selective_scan_fn(*inputs.values())
    assert_close(y, definitions.selective_scan(*wide(*inputs.values()))[0])


def test_the_first_package_of_vmamba_has_no_gate() -> None:
    from selective_scan import selective_scan_fn, selective_scan_ref

    inputs = scan_inputs(2, 6, 9, 4)
    arguments = [inputs[name] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    *others, bias = wide(*arguments)
    exact, _ = definitions.selective_scan(*others, None, bias, True)
    assert_close(selective_scan_fn(*arguments, True, 1), exact)
    assert_close(selective_scan_ref(*arguments, delta_softplus=True), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_give_their_dtype_and_oflex_gives_fp32(dtype: torch.dtype) -> None:
    import selective_scan_cuda_core
    import selective_scan_cuda_oflex

    inputs = scan_inputs(2, 8, 49, 1)
    inputs |= {"B": torch.randn(2, 4, 1, 49), "C": torch.randn(2, 4, 1, 49)}
    for name in ("u", "delta", "B", "C"):
        inputs[name] = inputs[name].to(dtype)
    arguments = [inputs[name] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    exact, state = definitions.selective_scan(
        *wide(*arguments[:6]), None, wide(inputs["delta_bias"])[0], True
    )
    narrow, x = selective_scan_cuda_core.fwd(*arguments, True, 1)
    assert narrow.dtype == dtype
    assert_close(narrow, exact, 2 * torch.finfo(dtype).eps)
    y, x = selective_scan_cuda_oflex.fwd(*arguments, True, 1, True)
    assert y.dtype == torch.float32
    assert_close(y, exact)
    assert_close(x[:, :, -1, 1::2], state)
    assert selective_scan_cuda_oflex.fwd(*arguments, True, 1, False)[0].dtype == dtype


def test_compiled_modules_return_what_callers_read() -> None:
    import selective_scan_cuda
    import selective_scan_cuda_ndstate

    inputs = scan_inputs(2, 6, 11, 5)
    arguments = list(inputs.values())
    out, x, out_z = selective_scan_cuda.fwd(*arguments, True)
    exact, state = definitions.selective_scan(*wide(*arguments), True)
    ungated, _ = definitions.selective_scan(
        *wide(*arguments[:6]), None, wide(arguments[7])[0], True
    )
    assert_close(out_z, exact)
    assert_close(out, ungated)
    assert_close(x[:, :, -1, 1::2], state)
    assert len(selective_scan_cuda.fwd(*arguments[:6], None, arguments[7], True)) == 2

    u, delta, D, bias = (inputs[name] for name in ("u", "delta", "D", "delta_bias"))
    A, B, C = -torch.rand(6), torch.randn(2, 3, 11), torch.randn(2, 3, 11)
    y, _ = selective_scan_cuda_ndstate.fwd(u, delta, A, B, C, D, bias, True, 1)
    exact, _ = definitions.selective_scan(
        *wide(u, delta, A[:, None], B[:, :, None], C[:, :, None], D), None, wide(bias)[0], True
    )
    assert_close(y, exact)


def mixer_weights(d_inner: int, rank: int, states: int, varying: int = 2) -> list[Tensor]:
    """conv weight and bias, x_proj, dt_proj, A, D, delta_bias."""
    return [
        torch.randn(d_inner, 1, 4),
        torch.randn(d_inner),
        torch.randn(rank + varying * states, d_inner) / d_inner**0.5,
        torch.randn(d_inner, rank) / rank**0.5,
        -torch.rand(d_inner, states) - 0.1,
        torch.randn(d_inner),
        torch.randn(d_inner),
    ]


@pytest.mark.parametrize(("batch", "d_inner", "length", "states"), SIZES)
def test_mamba_inner(batch: int, d_inner: int, length: int, states: int) -> None:
    *weights, D, bias = mixer_weights(d_inner, 3, states)
    xz = torch.randn(batch, 2 * d_inner, length)
    projection, shift = torch.randn(5, d_inner), torch.randn(5)
    exact = definitions.mamba_inner(*wide(xz, *weights, D, bias))
    calls = interface()
    y = calls.mamba_inner_fn_no_out_proj(xz, *weights, None, None, D, delta_bias=bias)
    assert_close(y, exact)
    y = calls.mamba_inner_fn(
        xz, *weights[:-1], projection, shift, weights[-1], None, None, D, delta_bias=bias
    )
    out = exact.transpose(0, 2, 1) @ wide(projection)[0].T + wide(shift)[0]
    assert_close(y, out)


def test_mamba_inner_with_a_constant_b_and_norms() -> None:
    *weights, D, bias = mixer_weights(6, 3, 4, varying=1)
    xz, B = torch.randn(2, 12, 9), torch.randn(6, 4)
    y = interface().mamba_inner_fn_no_out_proj(xz, *weights, B, None, D, delta_bias=bias)
    assert_close(y, definitions.mamba_inner(*wide(xz, *weights, D, bias, B)))

    *weights, D, bias = mixer_weights(6, 3, 4)
    norms = torch.rand(4), torch.rand(4), torch.rand(6)
    y = interface().mamba_inner_fn(
        xz,
        *weights[:-1],
        torch.eye(6),
        None,
        weights[-1],
        D=D,
        delta_bias=bias,
        b_rms_weight=norms[0],
        c_rms_weight=norms[1],
        dt_rms_weight=norms[2],
    )
    exact = definitions.mamba_inner(*wide(xz, *weights, D, bias), norms=tuple(wide(*norms)))
    assert_close(y, exact.transpose(0, 2, 1))


def test_bimamba_inner() -> None:
    """One convolution, scanned both ways."""
    *weights, D, bias = mixer_weights(6, 3, 4)
    xz, A_b = torch.randn(2, 12, 9), -torch.rand(6, 4)
    y = interface().bimamba_inner_fn(
        xz, *weights[:-1], torch.eye(6), None, weights[-1], A_b, None, None, D, delta_bias=bias
    )
    forwards = definitions.mamba_inner(*wide(xz, *weights, D, bias))
    x, z = np.split(wide(xz)[0], 2, axis=1)
    x = definitions.causal_conv(x, wide(weights[0])[0][:, 0], wide(weights[1])[0])
    projected = np.einsum("bdl,rd->brl", x, wide(weights[2])[0])
    delta = np.einsum("brl,dr->bdl", projected[:, :3], wide(weights[3])[0])
    flipped = [t[..., ::-1] for t in (x, delta, projected[:, 3:7], projected[:, 7:], z)]
    back, _ = definitions.selective_scan(
        flipped[0], flipped[1], wide(A_b)[0], flipped[2], flipped[3], *wide(D), flipped[4],
        wide(bias)[0], True,
    )  # fmt: skip
    assert_close(y, (forwards + back[..., ::-1]).transpose(0, 2, 1))


@pytest.mark.parametrize("length", [1, 2, 33])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_causal_conv1d(length: int, activation: str | None) -> None:
    import causal_conv1d
    import causal_conv1d_cuda

    x, weight, bias = torch.randn(2, 6, length), torch.randn(6, 4), torch.randn(6)
    state = torch.randn(2, 6, 3)
    silu = activation is not None
    exact = definitions.causal_conv(*wide(x, weight, bias), None, silu)
    assert_close(causal_conv1d.causal_conv1d_fn(x, weight, bias, activation=activation), exact)
    assert_close(causal_conv1d.causal_conv1d_fn(x, weight, bias, activation), exact)  # version 1.0
    for arguments in ((silu,), (None, silu), (None, None, None, silu)):
        assert_close(causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, *arguments), exact)

    continued = definitions.causal_conv(*wide(x, weight, bias, state), silu)
    y, last = causal_conv1d.causal_conv1d_fn(
        x, weight, bias, initial_states=state, return_final_states=True, activation=activation
    )
    inputs = torch.cat([state, x], -1)
    assert_close(y, continued)
    assert_close(last, wide(inputs[..., -3:])[0])
    memory, out = torch.zeros(2, 6, 3), torch.zeros(2, 6, length)
    causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, state, out, memory, silu)
    assert_close(out, continued)
    assert_close(memory, wide(inputs[..., -3:])[0])

    kept = torch.cat([torch.randn(2, 6, 1), state], -1)  # one more than the taps need
    expected = torch.cat([kept, x], -1)[..., -4:]
    y = causal_conv1d.causal_conv1d_update(x, kept, weight, bias, activation)
    assert_close(y, continued)
    assert torch.equal(kept, expected)


@pytest.mark.parametrize("is_rms", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_norms_of_both_homes(is_rms: bool, residual: bool) -> None:
    from mamba_ssm.ops.triton import layer_norm, layernorm

    x, weight, bias = torch.randn(2, 5, 8), torch.randn(8), torch.randn(8)
    before = torch.randn(2, 5, 8) if residual else None
    total = wide(x)[0] + (wide(before)[0] if residual else 0)
    if is_rms:
        exact = definitions.rms(total, wide(weight)[0], 1e-3) + wide(bias)[0]
        old = layernorm.rms_norm_fn(x, weight, bias, before, True, True, 1e-3)
        new = layer_norm.rms_norm_fn(
            x, weight, bias, before, None, None, None, 1e-3, 0.0, None, True, True
        )
    else:
        exact = definitions.layer_norm(total, wide(weight)[0], wide(bias)[0], 1e-3)
        old = layernorm.layer_norm_fn(x, weight, bias, before, 1e-3, True, True)
        new = layer_norm.layer_norm_fn(
            x, weight, bias, before, None, None, None, 1e-3, 0.0, None, True, True
        )
    for y, kept in (old, new):
        assert_close(y, exact)
        assert_close(kept, total)
        assert kept.dtype == torch.float32


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("group", [None, 4])
def test_gated_norm(before: bool, group: int | None) -> None:
    from mamba_ssm.ops.triton.layernorm_gated import RMSNorm, layernorm_fn

    norm = RMSNorm(12, 1e-3, group, norm_before_gate=before)
    torch.nn.init.normal_(norm.weight)
    x, z = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    gate, weight = definitions.silu(wide(z)[0]), wide(norm.weight)[0]
    inner = wide(x)[0] * (1 if before else gate)
    parts = np.split(inner, 1 if group is None else 3, axis=-1)
    exact = np.concatenate([definitions.rms(part, np.ones(1), 1e-3) for part in parts], -1)
    assert_close(norm(x, z), exact * weight * (gate if before else 1))
    bias = torch.randn(12)
    y = layernorm_fn(x, norm.weight, bias, eps=1e-3)
    assert_close(y, definitions.layer_norm(wide(x)[0], weight, wide(bias)[0], 1e-3))


@pytest.mark.parametrize("heads", [None, 4])
def test_state_update_is_a_step_of_the_scan(heads: int | None) -> None:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    batch, dim, states = 2, 6, 3
    lead = (batch,) if heads is None else (batch, heads)
    state, x, dt, z = (torch.randn(*lead, dim) for _ in range(4))
    state = torch.randn(*lead, dim, states)
    A = -torch.rand(*lead[1:], dim, states)
    D, bias = torch.randn(*lead[1:], dim), torch.randn(*lead[1:], dim)
    B, C = (torch.randn(batch, *([] if heads is None else [2]), states) for _ in range(2))
    before = wide(state)[0]
    y = selective_state_update(state, x, dt, A, B, C, D, z, bias, dt_softplus=True)
    step = definitions.softplus(wide(dt)[0] + wide(bias)[0])
    spread = [t if heads is None else np.repeat(t, heads // 2, axis=1) for t in wide(B, C)]
    after = np.exp(step[..., None] * wide(A)[0]) * before
    after += (step * wide(x)[0])[..., None] * spread[0][..., None, :]
    out = (after * spread[1][..., None, :]).sum(-1) + wide(D)[0] * wide(x)[0]
    assert_close(state, after)
    assert_close(y, out * definitions.silu(wide(z)[0]))


def test_gradients_are_those_of_the_definition() -> None:
    """Against finite differences of the whole mixer, and the compiled modules' ``bwd`` against autograd."""
    from mamba_ssm import Mamba

    mixer = Mamba(8, d_state=3, bimamba_type="v2", if_divide_out=True).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x,), atol=1e-6)

    import causal_conv1d_cuda
    import selective_scan_cuda
    import selective_scan_cuda_oflex

    inputs = [t.requires_grad_() for t in scan_inputs(2, 6, 7, 3).values()]
    y = interface().selective_scan_fn(*inputs, delta_softplus=True)
    dout = torch.randn_like(y)
    *expected, dz, dbias = torch.autograd.grad(y, inputs, dout)
    memory = torch.empty_like(dout)
    found = selective_scan_cuda.bwd(*inputs, dout, None, None, memory, True, True)
    for one, other in zip(found, [*expected, dbias, dz, y], strict=True):
        torch.testing.assert_close(one, other)
    assert found[7] is memory
    ungated = [*inputs[:6], inputs[7]]
    y = interface().selective_scan_fn(*inputs[:6], None, inputs[7], True)
    expected = torch.autograd.grad(y, ungated, dout)
    found = selective_scan_cuda_oflex.bwd(*ungated, dout, None, True, 1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)

    x, weight, bias = torch.randn(2, 6, 7), torch.randn(6, 4), torch.randn(6)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = causal_conv1d_cuda.causal_conv1d_fwd(*leaves, True)
    expected = torch.autograd.grad(y, leaves, dout)
    for arguments in ((None, True), (None, None, True), (None, None, None, None, False, True)):
        found = causal_conv1d_cuda.causal_conv1d_bwd(*leaves, dout, *arguments)
        for one, other in zip(found, expected, strict=False):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda i: i.selective_scan_fn(*[torch.randn(1, 2, 3)] * 2, torch.randn(2, 4, dtype=torch.cfloat),
                                       *[torch.randn(1, 4, 3)] * 2), "complex A"),
        (lambda i: __import__("causal_conv1d").causal_conv1d_fn(
            torch.randn(1, 2, 3), torch.randn(2, 4), seq_idx=torch.zeros(1, 3)), "seq_idx"),
        (lambda i: __import__("mamba_ssm").Mamba(8, bimamba_type="v9"), "bimamba_type='v9'"),
        (lambda i: __import__("mamba_ssm").Mamba2(8, process_group=object()), "Mamba2"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(call: Any, named: str) -> None:
    with pytest.raises(NotImplementedError, match=named) as caught:
        call(interface())
    assert "\n" not in str(caught.value)
