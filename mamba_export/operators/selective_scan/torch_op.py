"""``torch.ops.mamba_export.selective_scan``: the S6 scan as a torch custom op.

Works under autograd, autocast, torch.compile and torch.export. The implementation is chosen a call: the
compiled kernels where they run on the device; else, and for gradients, Triton on a GPU and the vectorised
path on a CPU; the reference where forced (see ``dispatch``). Gradients need the inputs alone, so that
forward and backward may be of two implementations.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from mamba_export.contract import DOMAIN
from mamba_export.operators import dispatch, native
from mamba_export.operators.dtypes import accumulation_dtype
from mamba_export.operators.selective_scan.reference import selective_scan_reference

_OP = "selective_scan"
_BACKWARD = "selective_scan_backward"


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    initial_state: Tensor,
) -> None:
    dispatch.expect_sequence(_OP, "u", u)
    A_shape, B_shape = A.shape, B.shape
    if len(A_shape) != 2 or A_shape[1] == 0:
        raise ValueError(f"{_OP}: A has shape {tuple(A_shape)}, expected (d_inner, d_state)")
    if len(B_shape) != 4:
        raise ValueError(
            f"{_OP}: B has shape {tuple(B_shape)}, expected (batch, length, n_groups, d_state)"
        )
    sequence, dtype, device = u.shape, u.dtype, u.device
    batch, length, d_inner = sequence
    n_groups, d_state = B_shape[2], A_shape[1]
    if n_groups == 0 or d_inner % n_groups:
        raise ValueError(f"{_OP}: n_groups {n_groups} (from B) does not divide d_inner {d_inner}")
    per_step = (batch, length, n_groups, d_state)
    acc = accumulation_dtype(dtype)
    expect = dispatch.expect
    expect(_OP, "delta", delta, sequence, dtype, device)
    expect(_OP, "A", A, (d_inner, d_state), acc, device)
    expect(_OP, "B", B, per_step, dtype, device)
    expect(_OP, "C", C, per_step, dtype, device)
    expect(_OP, "D", D, (d_inner,), acc, device)
    if z is not None:
        expect(_OP, "z", z, sequence, dtype, device)
    expect(_OP, "delta_bias", delta_bias, (d_inner,), acc, device)
    expect(_OP, "initial_state", initial_state, (batch, d_inner, d_state), acc, device)


def _kernels(backend: str) -> ModuleType:
    if backend == "native":
        return native
    if backend == "triton":
        from mamba_export.operators.selective_scan import triton_kernels

        return triton_kernels
    from mamba_export.operators.selective_scan import cpu

    return cpu


def _selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    initial_state: Tensor,
    delta_softplus: bool = True,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    backend = dispatch.choose_backend(u)
    forward = (
        selective_scan_reference
        if backend == "reference"
        else _kernels(backend).selective_scan_forward
    )
    return forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse)


def _fake(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus=True, reverse=False):
    y = u.new_empty(u.shape)
    last_state = u.new_empty(initial_state.shape, dtype=accumulation_dtype(u.dtype))
    return y, last_state


def _selective_scan_backward(
    dy: Tensor,
    dlast_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    initial_state: Tensor,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    backend = dispatch.choose_backend(u, native_takes=False)  # what is compiled has no gradients
    du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dstate = _kernels(backend).selective_scan_backward(
        dy, dlast_state, u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse
    )
    # A custom op returns tensors only: a zero-sized one stands for the absent gate's gradient.
    dz = u.new_empty(0) if dz is None else dz
    return du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dstate


def _fake_backward(dy, dlast_state, u, delta, A, B, C, D, z, delta_bias, initial_state, *flags):
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return tuple(u.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs)


dispatch.define_operator(_OP, _selective_scan, _fake)
dispatch.define_operator(_BACKWARD, _selective_scan_backward, _fake_backward)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy, dlast_state):
    u, delta, A, B, C, D, z, delta_bias, initial_state = ctx.saved_tensors
    grads = torch.ops.mamba_export.selective_scan_backward(
        dy, dlast_state, u, delta, A, B, C, D, z, delta_bias, initial_state,
        ctx.delta_softplus, ctx.reverse,
    )  # fmt: skip
    du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state = grads
    dz = None if z is None else dz
    return du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state, None, None


torch.library.register_autograd(f"{DOMAIN}::{_OP}", _backward, setup_context=_setup_context)


def _adapt_autocast(dtype, u, delta, A, B, C, D, z, delta_bias, initial_state, *flags):
    low, acc = dispatch.cast_low, accumulation_dtype(u.dtype)
    return (
        low(u, dtype), low(delta, dtype), A.to(acc), low(B, dtype), low(C, dtype), D.to(acc),
        None if z is None else low(z, dtype), delta_bias.to(acc), initial_state.to(acc), *flags,
    )  # fmt: skip


dispatch.register_autocast(_OP, _adapt_autocast)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan with what is absent filled in; calls ``torch.ops.mamba_export.selective_scan``.

    The formula is that of ``reference.selective_scan_reference`` (arXiv:2312.00752, section 3).

    Args:
        u, delta: (batch, length, d_inner), fp32, fp16, bf16 (or float64 on any device).
        A: (d_inner, d_state) fp32, negative.
        B, C: (batch, length, n_groups, d_state) in u's dtype, or (batch, length, d_state) for one group.
        D: (d_inner,) fp32, or None for no skip.
        z: (batch, length, d_inner) in u's dtype, or None for no gate.
        delta_bias: (d_inner,) fp32, or None.
        initial_state: (batch, d_inner, d_state) fp32, or None for zeros.
        delta_softplus: apply softplus to ``delta + delta_bias``.
        reverse: walk from the last step to the first.

    Returns:
        y (batch, length, d_inner) in u's dtype, and last_state (batch, d_inner, d_state) fp32.

    Raises:
        ValueError: a shape or dtype that the contract does not allow; the message names the tensor.
    """
    zeros = None
    if D is None or delta_bias is None:
        zeros = A.new_zeros(A.shape[0])
    if initial_state is None:
        initial_state = A.new_zeros((u.shape[0], *A.shape))
    return torch.ops.mamba_export.selective_scan(
        u,
        delta,
        A,
        B.unsqueeze(2) if B.dim() == 3 else B,
        C.unsqueeze(2) if C.dim() == 3 else C,
        zeros if D is None else D,
        z,
        zeros if delta_bias is None else delta_bias,
        initial_state,
        delta_softplus,
        reverse,
    )
