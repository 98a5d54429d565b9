"""The definition of the gated RMSNorm, in plain PyTorch (arXiv:2405.21060, section 7.1, figure 6)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.operators.dtypes import accumulation_dtype


def gated_rms_norm_reference(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    epsilon: float = 1e-5,
    norm_before_gate: bool = False,
) -> Tensor:
    """Root mean square normalisation of each group of channels, with a gate before or behind it.

    .. code-block:: text

        norm(v) = v / sqrt(mean(v^2) + epsilon) * weight        (arXiv:1910.07467)
        y = norm(x * silu(z)), or with norm_before_gate norm(x) * silu(z)

    Args:
        x, z: (batch, length, groups, group_width).
        weight: (groups, group_width).
        epsilon: added to the mean square.
        norm_before_gate: the gate is behind the norm.

    Returns:
        y of x's shape and dtype.
    """
    acc = accumulation_dtype(x.dtype)
    value, gate = x.to(acc), F.silu(z.to(acc))
    if not norm_before_gate:
        value = value * gate
    value = value / torch.sqrt(value.pow(2).mean(-1, keepdim=True) + epsilon) * weight.to(acc)
    if norm_before_gate:
        value = value * gate
    return value.to(x.dtype)
