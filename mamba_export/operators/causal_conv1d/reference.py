"""The definition of the causal convolution: slow, plain, differentiable, any floating dtype.

Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu and Dao 2023, arXiv:2312.00752.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.operators.dtypes import accumulation_dtype


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_state: Tensor,
    silu: bool = True,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution with state in and out (section 3.4 of the paper).

    ``y_t = silu(bias + sum_k weight[k] x_{t - (d_conv - 1) + k})``; the steps before the first come from
    ``initial_state``, so that a sequence may be cut anywhere.

    Args:
        x: (batch, length, channels).
        weight: (channels, d_conv); the last tap multiplies the current step.
        bias: (channels,); zeros for a model without one.
        initial_state: (batch, channels, d_conv - 1) in x's dtype, oldest step first.
        silu: apply SiLU.
        reverse: walk from the last step to the first (an anti-causal convolution).

    Returns:
        y (batch, length, channels) and last_state (batch, channels, d_conv - 1), both in x's dtype.
    """
    acc = accumulation_dtype(x.dtype)
    walk = x.flip(1) if reverse else x
    padded = torch.cat([initial_state.transpose(1, 2), walk], dim=1)
    taps = weight.shape[1]
    y = bias.to(acc).expand(x.shape)
    for k in range(taps):
        y = y + weight[:, k].to(acc) * padded[:, k : k + x.shape[1]].to(acc)
    if silu:
        y = F.silu(y)
    if reverse:
        y = y.flip(1)
    last_state = padded[:, x.shape[1] :].transpose(1, 2)
    return y.to(x.dtype), last_state.contiguous()
