"""The definition of the selective scan: slow, plain, differentiable, any floating dtype.

Every other implementation (CPU, Triton, ONNX function body, compiled kernels) is compared with it. It loops
over time on purpose: each line is one line of the paper.

Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu and Dao 2023, arXiv:2312.00752.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.operators.dtypes import accumulation_dtype

_SMALL = 0.1
"""Below this size ``phi1`` is summed as a series: at 0 (exp(x) - 1) / x is 0 / 0, and near it its slope is."""
_TERMS = 12  # of the series: the next one is below 1e-20


def phi1(x: Tensor) -> Tensor:
    """(exp(x) - 1) / x with its limit 1 at 0: the mean of exp over [0, x]. Differentiable everywhere.

    The first of the phi functions of exponential integrators (Hochbruck and Ostermann 2010, "Exponential
    integrators", equation 2.11).

    Args:
        x: any shape, fp32 or float64.
    """
    is_small = x.abs() < _SMALL
    near, far = (
        torch.where(is_small, x, 0),
        torch.where(is_small, 1, x),
    )  # each finite, so gradients are
    series = torch.ones_like(near)
    for k in range(_TERMS, 1, -1):
        series = 1 + near / k * series
    return torch.where(is_small, series, torch.expm1(far) / far)


def selective_scan_reference(
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
    exact_zoh: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan (S6), one step at a time (Algorithm 2 of the paper, recurrent form).

    .. code-block:: text

        dt_t = softplus(delta_t + delta_bias)
        h_t  = exp(dt_t A) h_{t-1} + Bbar_t u_t          (equation 2a)
        y_t  = (C_t h_t + D u_t) * silu(z_t)             (equation 2b, with skip and gate)

    A is discretised by zero-order hold. For B the released code's simplification is the default:
    ``Bbar_t = dt_t B_t`` (Euler's rule). ``exact_zoh`` takes zero-order hold for B too (equation 4):
    ``Bbar_t = (dt_t A)^-1 (exp(dt_t A) - 1) dt_t B_t``.

    Args:
        u: (batch, length, d_inner), input.
        delta: (batch, length, d_inner), step size before bias and softplus.
        A: (d_inner, d_state), negative.
        B, C: (batch, length, n_groups, d_state); channel ``d`` uses group ``d * n_groups // d_inner``.
        D: (d_inner,), skip; zeros for a model without one.
        z: (batch, length, d_inner), gate before SiLU, or None.
        delta_bias: (d_inner,).
        initial_state: (batch, d_inner, d_state), float32 (float64 if u is float64).
        delta_softplus: apply softplus to ``delta + delta_bias``.
        reverse: walk from the last step to the first.
        exact_zoh: zero-order hold for B, where it else is dt B.

    Returns:
        y (batch, length, d_inner) in u's dtype; last_state (batch, d_inner, d_state) float32 or float64.
    """
    acc = accumulation_dtype(u.dtype)
    channels_a_group = u.shape[-1] // B.shape[-2]
    ut, dt, Bt, Ct = u.to(acc), delta.to(acc) + delta_bias.to(acc), B.to(acc), C.to(acc)
    if delta_softplus:
        dt = F.softplus(dt)
    A, D = A.to(acc), D.to(acc)
    Bt = Bt.repeat_interleave(channels_a_group, dim=2)  # (batch, length, d_inner, d_state)
    Ct = Ct.repeat_interleave(channels_a_group, dim=2)

    h = initial_state.to(acc)
    steps = range(u.shape[1])
    ys: list[Tensor] = [h.new_empty(0)] * u.shape[1]
    for t in reversed(steps) if reverse else steps:
        dtA = dt[:, t, :, None] * A  # (batch, d_inner, d_state)
        Bbar = dt[:, t, :, None] * Bt[:, t]
        if exact_zoh:
            Bbar = phi1(dtA) * Bbar
        h = torch.exp(dtA) * h + Bbar * ut[:, t, :, None]
        ys[t] = (h * Ct[:, t]).sum(-1) + D * ut[:, t]
    y = torch.stack(ys, dim=1) if ys else ut
    if z is not None:
        y = y * F.silu(z.to(acc))
    return y.to(u.dtype), h
