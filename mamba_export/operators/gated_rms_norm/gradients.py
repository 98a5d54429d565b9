"""Gradients of the gated RMSNorm: autograd's, of its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_export.operators.gated_rms_norm.reference import gated_rms_norm_reference


def gated_rms_norm_backward(
    dy: Tensor, x: Tensor, z: Tensor, weight: Tensor, epsilon: float, norm_before_gate: bool
) -> tuple[Tensor, ...]:
    """Gradients of x, z and weight."""
    x, z, weight = (tensor.detach().requires_grad_() for tensor in (x, z, weight))
    with torch.enable_grad():
        y = gated_rms_norm_reference(x, z, weight, epsilon, norm_before_gate)
    return torch.autograd.grad(y, (x, z, weight), dy)
