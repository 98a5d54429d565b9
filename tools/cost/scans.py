"""Mamba's scan in plain PyTorch, as a loop and as a parallel scan, and attention: what kernels are beside.

Both scans compute what ``mamba_export.operators.selective_scan`` does, its arguments and layout included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Result = tuple[Tensor, Tensor]


def _terms(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor) -> Result:
    """exp(dt A) and dt B u, each (batch, length, d_inner, d_state) in fp32."""
    dt = F.softplus(delta.float() + delta_bias)
    return torch.exp(dt[..., None] * A), (dt * u.float())[..., None] * B.float()[:, :, 0, None]


def _gated(y: Tensor, u: Tensor, D: Tensor, z: Tensor) -> Tensor:
    return ((y + D * u.float()) * F.silu(z.float())).to(u.dtype)


def sequential_scan(
    *,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    initial_state: Tensor,
) -> Result:
    """A loop over the steps, as mamba_ssm's ``selective_scan_ref`` has it (arXiv:2312.00752, algorithm 2).

    Returns:
        y (batch, length, d_inner) in u's dtype, and the last state (batch, d_inner, d_state) fp32.
    """
    decay, added = _terms(u, delta, A, B, delta_bias)
    state = initial_state
    steps = []
    for step in range(u.shape[1]):
        state = decay[:, step] * state + added[:, step]
        steps.append((state * C[:, step].float()).sum(-1))
    return _gated(torch.stack(steps, 1), u, D, z), state


def parallel_scan(
    *,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    initial_state: Tensor,
) -> Result:
    """A work-efficient parallel scan, all of its terms in memory: the paper's standard one (section 4.5).

    Returns:
        As ``sequential_scan``.
    """
    decay, added = _terms(u, delta, A, B, delta_bias)
    added[:, 0] += decay[:, 0] * initial_state
    states = _prefixes(decay, added)
    y = torch.einsum("bldn,bln->bld", states, C.float()[:, :, 0])
    return _gated(y, u, D, z), states[:, -1]


def _prefixes(decay: Tensor, added: Tensor) -> Tensor:
    """States x(t) = decay(t) x(t - 1) + added(t), x(-1) = 0, along axis 1: of pairs first."""
    length = added.shape[1]
    if length == 1:
        return added
    even, odd = slice(0, length - length % 2, 2), slice(1, None, 2)
    pairs = _prefixes(
        decay[:, odd] * decay[:, even], torch.addcmul(added[:, odd], decay[:, odd], added[:, even])
    )
    states = torch.empty_like(added)
    states[:, 0] = added[:, 0]
    states[:, odd] = pairs
    between = slice(2, None, 2)
    before = pairs[:, : (length - 1) // 2]
    torch.addcmul(added[:, between], decay[:, between], before, out=states[:, between])
    return states


def attention(*, u: Tensor, **_unused: Any) -> Tensor:
    """Causal attention as wide as the scan, with PyTorch's kernel: FlashAttention on a GPU."""
    batch, length, width = u.shape
    heads = u.view(batch, length, -1, min(64, width)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
