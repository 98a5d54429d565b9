"""The definition of the selective scan: slow, plain, differentiable, any floating dtype.

Every other implementation (CPU, Triton, ONNX function body, compiled kernels) is compared with it. It loops
over time on purpose: each line is one line of the paper.

Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu and Dao 2023, arXiv:2312.00752.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.operators.dtypes import accumulation_dtype

Discretization = Literal["euler", "zoh"]


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
    *,
    discretization: Discretization = "euler",
) -> tuple[Tensor, Tensor]:
    """Selective scan (S6), one step at a time (Algorithm 2 of the paper, recurrent form).

    .. code-block:: text

        dt_t = softplus(delta_t + delta_bias)
        h_t  = exp(dt_t A) h_{t-1} + Bbar_t u_t          (equation 2a)
        y_t  = (C_t h_t + D u_t) * silu(z_t)             (equation 2b, with skip and gate)

    A is discretised by zero-order hold. For B the reference implementation's simplification is the
    default: ``Bbar_t = dt_t B_t`` (Euler). ``discretization="zoh"`` uses the textbook's zero-order hold
    instead (equation 4): ``Bbar_t = (exp(dt_t A) - 1) / A * B_t``.

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
        discretization: of B, "euler" or "zoh".

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
        Bbar = (
            torch.expm1(dtA) / A * Bt[:, t]
            if discretization == "zoh"
            else dt[:, t, :, None] * Bt[:, t]
        )
        h = torch.exp(dtA) * h + Bbar * ut[:, t, :, None]
        ys[t] = (h * Ct[:, t]).sum(-1) + D * ut[:, t]
    y = torch.stack(ys, dim=1) if ys else ut
    if z is not None:
        y = y * F.silu(z.to(acc))
    return y.to(u.dtype), h
