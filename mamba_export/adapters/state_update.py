"""mamba_ssm.ops.triton.selective_state_update: one step of the scan, the state brought up to date in place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.adapters.unsupported import refuse
from mamba_export.operators.dtypes import accumulation_dtype


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """One step of the recurrence (arXiv:2312.00752, equation 2; arXiv:2405.21060 with heads).

    Args:
        state: (batch, dim, d_state) or (batch, heads, dim, d_state); changed in place.
        x, dt, z: (batch, dim) or (batch, heads, dim); z None for no gate.
        A: (dim, d_state) or (heads, dim, d_state).
        B, C: (batch, d_state) or (batch, groups, d_state).
        D, dt_bias: (dim,) or (heads, dim), or None.
        dt_softplus: apply softplus to ``dt + dt_bias``.

    Returns:
        (batch, dim) or (batch, heads, dim) in x's dtype.

    Raises:
        NotImplementedError: state_batch_indices is given.
    """
    if state_batch_indices is not None:
        refuse("selective_state_update with state_batch_indices", "index the state before the call")
    wide = accumulation_dtype(x.dtype)
    with_heads = state.dim() == 4
    heads = state.shape[1] if with_heads else 1

    def headed(tensor: Tensor) -> Tensor:
        """With an axis of heads, in the dtype of the arithmetic."""
        return tensor.to(wide) if with_heads else tensor.to(wide).unsqueeze(-2)

    def grouped(tensor: Tensor) -> Tensor:
        """B or C as (batch, heads, 1, d_state)."""
        groups = tensor.unsqueeze(1) if tensor.dim() == 2 else tensor
        return groups.to(wide).repeat_interleave(heads // groups.shape[1], dim=1).unsqueeze(2)

    steps = headed(dt)
    if dt_bias is not None:
        steps = steps + headed(dt_bias)
    if dt_softplus:
        steps = F.softplus(steps)
    rows = A.to(wide) if A.dim() == 3 else A.to(wide).unsqueeze(0)
    inputs = headed(x)
    past = state.to(wide) if with_heads else state.to(wide).unsqueeze(1)
    present = past * torch.exp(steps.unsqueeze(-1) * rows)
    present = present + (steps * inputs).unsqueeze(-1) * grouped(B)
    y = (present * grouped(C)).sum(-1)
    state.copy_(present if with_heads else present.squeeze(1))
    if D is not None:
        y = y + headed(D) * inputs
    if z is not None:
        y = y * F.silu(headed(z))
    return (y if with_heads else y.squeeze(1)).to(x.dtype)
