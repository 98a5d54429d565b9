"""The definition of state space duality: slow, plain, differentiable, any floating dtype.

Every other implementation is compared with it. It loops over time on purpose: each line is one line of the
paper. Nothing here knows of chunks, which are a choice of a kernel.

Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality, Dao
and Gu 2024, arXiv:2405.21060.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.contract.operators import LARGEST
from mamba_export.operators.dtypes import accumulation_dtype


def state_space_dual_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    log_decay: Tensor | None,
    dt_bias: Tensor,
    initial_state: Tensor,
    dt_softplus: bool = True,
    dt_min: float = 0.0,
    dt_max: float = LARGEST,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """State space duality, one step at a time (arXiv:2405.21060, section 3.1, the linear form).

    .. code-block:: text

        dt_t = clamp(softplus(dt_t + dt_bias), dt_min, dt_max)
        h_t  = exp(dt_t A + log_decay_t) h_{t-1} + dt_t x_t B_t^T
        y_t  = (h_t C_t + D x_t) * silu(z_t)

    A is a number of a head, so a head's state is one matrix (head_dim, d_state) with one decay.

    Args:
        x: (batch, length, heads, head_dim), input.
        dt: (batch, length, heads), step size before bias, softplus and limits. A step of 0 leaves the state.
        A: (heads,), negative.
        B, C: (batch, length, n_groups, d_state); head ``i`` uses group ``i * n_groups // heads``.
        D: (heads, d_skip), skip: one number of a head, or one of each channel; zeros for a model without it.
        z: (batch, length, heads, head_dim), gate before SiLU, or None.
        log_decay: (batch, length, heads), at most 0, added to the decay's exponent, or None.
        dt_bias: (heads,).
        initial_state: (batch, heads, head_dim, d_state).
        dt_softplus: apply softplus to ``dt + dt_bias``.
        dt_min, dt_max: limits of the step size, after softplus.
        reverse: walk from the last step to the first.

    Returns:
        y (batch, length, heads, head_dim) in x's dtype; last_state (batch, heads, head_dim, d_state) in
        initial_state's.
    """
    acc = accumulation_dtype(x.dtype)
    heads_a_group = x.shape[2] // B.shape[2]
    xs, dts = x.to(acc), dt.to(acc) + dt_bias.to(acc)
    if dt_softplus:
        dts = F.softplus(dts)
    dts = dts.clamp(dt_min, dt_max)
    exponent = dts * A.to(acc)
    if log_decay is not None:
        exponent = exponent + log_decay.to(acc)
    Bs = B.to(acc).repeat_interleave(heads_a_group, dim=2)  # (batch, length, heads, d_state)
    Cs = C.to(acc).repeat_interleave(heads_a_group, dim=2)

    h = initial_state.to(acc)
    steps = range(x.shape[1])
    ys: list[Tensor] = [h.new_empty(0)] * x.shape[1]
    for t in reversed(steps) if reverse else steps:
        decay = torch.exp(exponent[:, t])[:, :, None, None]
        h = decay * h + (dts[:, t, :, None] * xs[:, t])[..., None] * Bs[:, t, :, None, :]
        ys[t] = (h * Cs[:, t, :, None, :]).sum(-1)
    y = torch.stack(ys, dim=1) + D.to(acc).repeat_interleave(x.shape[3] // D.shape[1], 1) * xs
    if z is not None:
        y = y * F.silu(z.to(acc))
    return y.to(x.dtype), h.to(initial_state.dtype)
