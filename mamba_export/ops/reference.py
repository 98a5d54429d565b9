"""The definition of the operators: slow, plain, differentiable, any floating dtype.

Every other implementation (CPU, Triton, ONNX function bodies, native kernels) is held against these
two functions. They loop over time on purpose: each line is one line of the paper.

Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu and Dao 2023, arXiv:2312.00752.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Discretization = Literal["euler", "zoh"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of arithmetic and recurrent state for inputs of ``dtype``: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_state: Tensor,
    silu: bool = True,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution with state in and out (section 3.4 of the paper).

    ``y_t = silu(bias + sum_k weight[k] x_{t - (d_conv - 1) + k})``; the steps before the first come from
    ``initial_state``, so that a sequence may be cut anywhere.

    Args:
        x: (batch, length, channels).
        weight: (channels, d_conv); the last tap multiplies the current step.
        bias: (channels,); zeros for a model without one.
        initial_state: (batch, channels, d_conv - 1) in x's dtype, oldest step first.
        silu: apply SiLU.
        reverse: walk from the last step to the first (an anti-causal convolution).

    Returns:
        y (batch, length, channels) and last_state (batch, channels, d_conv - 1), both in x's dtype.
    """
    acc = accumulation_dtype(x.dtype)
    walk = x.flip(1) if reverse else x
    padded = torch.cat([initial_state.transpose(1, 2), walk], dim=1)
    taps = weight.shape[1]
    y = bias.to(acc).expand(x.shape)
    for k in range(taps):
        y = y + weight[:, k].to(acc) * padded[:, k : k + x.shape[1]].to(acc)
    if silu:
        y = F.silu(y)
    if reverse:
        y = y.flip(1)
    last_state = padded[:, x.shape[1] :].transpose(1, 2)
    return y.to(x.dtype), last_state.contiguous()
