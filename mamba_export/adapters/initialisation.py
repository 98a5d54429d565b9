"""How mamba_ssm's mixers start, where their kinds agree."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def without_decay(parameter: nn.Parameter) -> nn.Parameter:
    """Marked as training scripts look for it: no weight decay."""
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


def step_bias(like: Tensor, low: float, high: float, floor: float) -> Tensor:
    """Biases whose softplus is log-uniform in [low, high] and at least ``floor``.

    arXiv:2312.00752, section 3.6.
    """
    share = torch.rand_like(like)
    dt = torch.exp(share * math.log(high / low) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus
