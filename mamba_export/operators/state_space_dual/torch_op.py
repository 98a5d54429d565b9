"""``state_space_dual``: the torch operator, with defaults for absent inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_export.contract.operators import LARGEST


def state_space_dual(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    log_decay: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    dt_min: float = 0.0,
    dt_max: float = LARGEST,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """State space duality with defaults for absent inputs; calls ``torch.ops.mamba_export.state_space_dual``.

    The formula is that of ``reference.state_space_dual_reference`` (arXiv:2405.21060, section 3.1).

    Args:
        x: (batch, length, heads, head_dim), fp32, fp16, bf16 (or float64 on any device).
        dt: (batch, length, heads) in x's dtype.
        A: (heads,) fp32, negative.
        B, C: (batch, length, n_groups, d_state) in x's dtype, or (batch, length, d_state) for one group.
        D: (heads,) or (heads, head_dim) fp32, or None for no skip.
        z: (batch, length, heads, head_dim) in x's dtype, or None for no gate.
        log_decay: (batch, length, heads) fp32, at most 0, added to dt A; or None.
        dt_bias: (heads,) fp32, or None.
        initial_state: (batch, heads, head_dim, d_state) fp32 or in x's dtype, or None for zeros in fp32.
        dt_softplus: apply softplus to ``dt + dt_bias``.
        dt_min, dt_max: limits of dt after softplus; ``inf`` is taken as no limit.
        reverse: walk from the last step to the first.

    Returns:
        y (batch, length, heads, head_dim) in x's dtype, and last_state (batch, heads, head_dim, d_state)
        in initial_state's.

    Raises:
        ValueError: a shape, dtype or limit that the contract does not allow; the message names it.
    """
    if D is None or dt_bias is None:
        zeros = A.new_zeros(A.shape[0])
        D = zeros if D is None else D
        dt_bias = zeros if dt_bias is None else dt_bias
    B = B.unsqueeze(2) if B.dim() == 3 else B
    C = C.unsqueeze(2) if C.dim() == 3 else C
    if initial_state is None and torch.compiler.is_exporting():  # a file always has the tensor
        initial_state = A.new_zeros((x.shape[0], *x.shape[2:], B.shape[-1]))
    return torch.ops.mamba_export.state_space_dual(
        x,
        dt,
        A,
        B,
        C,
        D.unsqueeze(1) if D.dim() == 1 else D,
        z,
        log_decay,
        dt_bias,
        initial_state,
        dt_softplus,
        dt_min,
        min(dt_max, LARGEST),
        reverse,
    )
