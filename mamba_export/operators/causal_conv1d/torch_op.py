"""``causal_conv1d``: the torch operator, with defaults for absent inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    silu: bool = True,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution; calls ``torch.ops.mamba_export.causal_conv1d``.

    Args:
        x: (batch, length, channels), fp32, fp16, bf16 (or float64).
        weight: (channels, d_conv) fp32.
        bias: (channels,) fp32, or None.
        initial_state: (batch, channels, d_conv - 1) in x's dtype, or None for zeros.
        silu: apply SiLU to the result.
        reverse: walk from the last step to the first.

    Returns:
        y (batch, length, channels) and last_state (batch, channels, d_conv - 1), in x's dtype.

    Raises:
        ValueError: a shape or dtype that the contract does not allow; the message names the tensor.
    """
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    if initial_state is None:
        initial_state = x.new_zeros((x.shape[0], x.shape[2], weight.shape[1] - 1))
    return torch.ops.mamba_export.causal_conv1d(x, weight, bias, initial_state, silu, reverse)
