"""``selective_scan``: the torch operator, with defaults for absent inputs."""

from __future__ import annotations

import torch
from torch import Tensor


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
    exact_zoh: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan with defaults for absent inputs; calls ``torch.ops.mamba_export.selective_scan``.

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
        exact_zoh: discretise B by exact zero-order hold, ``(exp(dt A) - 1) / A B``, which textbooks have, and
            not by ``dt B``, which mamba_ssm and all published models of Mamba have.

    Returns:
        y (batch, length, d_inner) in u's dtype, and last_state (batch, d_inner, d_state) fp32.

    Raises:
        ValueError: a shape or dtype that the contract does not allow; the message names the tensor.
    """
    zeros = None
    if D is None or delta_bias is None:
        zeros = A.new_zeros(A.shape[0])
    if initial_state is None and torch.compiler.is_exporting():  # a file always has the tensor
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
        exact_zoh,
    )
