"""Root mean square normalisation: plain, and with a gate (Mamba-2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mamba_export import operators


class RMSNorm(nn.Module):
    """Root mean square normalisation, computed in fp32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width), any dtype -> the same shape, in the weight's dtype."""
        return (rms(x, self.epsilon) * self.weight.float()).to(self.weight.dtype)


def rms(x: Tensor, epsilon: float) -> Tensor:
    """x (..., width) over its root mean square, in fp32 (float64 stays float64)."""
    x = x if x.dtype == torch.float64 else x.float()
    # A division by a square root, not rsqrt: the form that graph optimisers recognise as one node.
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


class GatedRMSNorm(nn.Module):
    """The gated RMSNorm of Mamba-2 (arXiv:2405.21060, section 7.1), each group of channels normalised alone.

    Args:
        width: channels.
        groups: parts of the width; divides it.
        epsilon: added to the mean square.
        norm_before_gate: the gate is behind the norm.
    """

    def __init__(self, width: int, groups: int, epsilon: float, norm_before_gate: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.groups = groups
        self.epsilon = epsilon
        self.norm_before_gate = norm_before_gate

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x and gate z (batch, length, width) -> the same shape, in x's dtype; the operator does the work."""
        return operators.gated_rms_norm(
            x,
            z,
            self.weight,
            groups=self.groups,
            epsilon=self.epsilon,
            norm_before_gate=self.norm_before_gate,
        )
