"""mamba_ssm.modules.ssd_minimal: the paper's own listing over our operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mamba_export.operators import state_space_dual
from mamba_export.operators.dtypes import accumulation_dtype


def segsum(x: Tensor) -> Tensor:
    """x (..., T) -> (..., T, T): entry (i, j) is the sum over j < k <= i, and -inf where j > i."""
    steps = x.shape[-1]
    later = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril(-1)
    terms = x[..., None].expand(*x.shape, steps).masked_fill(~later, 0)
    return terms.cumsum(-2).masked_fill(later.T, -math.inf)


def ssd_minimal_discrete(
    X: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    block_len: int,
    initial_states: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``ssd_minimal_discrete`` (arXiv:2405.21060, listing 1), for any length.

    Args:
        X: (batch, length, heads, head_dim), times the step size.
        A: (batch, length, heads), the decay's logarithm: A times the step size.
        B, C: (batch, length, heads, d_state).
        block_len: steps of a chunk; at least 1.
        initial_states: (batch, 1, heads, head_dim, d_state), or None for zeros.

    Returns:
        Y (batch, length, heads, head_dim), and the last state (batch, heads, head_dim, d_state).
    """
    if block_len < 1:
        raise ValueError(f"ssd_minimal_discrete: block_len is {block_len}, expected at least 1")
    wide = accumulation_dtype(X.dtype)
    y, last_state = state_space_dual(
        X,
        torch.ones_like(A),
        A.new_zeros(A.shape[-1], dtype=wide),
        B,
        C,
        log_decay=A.to(wide),
        initial_state=None if initial_states is None else initial_states[:, 0].to(wide),
        dt_softplus=False,
    )
    return y, last_state.to(X.dtype)
