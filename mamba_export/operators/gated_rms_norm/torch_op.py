"""``gated_rms_norm``: the torch operator over the last axis, cut into groups."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_rms_norm(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    *,
    groups: int = 1,
    epsilon: float = 1e-5,
    norm_before_gate: bool = False,
) -> Tensor:
    """Gated RMSNorm; calls ``torch.ops.mamba_export.gated_rms_norm``.

    Args:
        x, z: (batch, length, width), fp32, fp16, bf16 (or float64).
        weight: (width,) fp32.
        groups: number of parts of the width that are normalised each alone; it divides the width.
        epsilon: added to the mean square.
        norm_before_gate: the gate is behind the norm.

    Returns:
        y (batch, length, width) in x's dtype.

    Raises:
        ValueError: a shape or dtype that the contract does not allow; the message names the tensor.
    """
    width = x.shape[-1]
    if groups < 1 or width % groups:
        raise ValueError(f"gated_rms_norm: groups {groups} does not divide the width {width}")
    split = (groups, width // groups)
    y = torch.ops.mamba_export.gated_rms_norm(
        x.unflatten(-1, split),
        z.unflatten(-1, split),
        weight.view(split),
        epsilon,
        norm_before_gate,
    )
    return y.flatten(-2)
