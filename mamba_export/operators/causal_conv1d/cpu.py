"""Causal depthwise convolution on a CPU: one multiply-add over the whole sequence for each tap."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_export.operators.dtypes import accumulation_dtype


def _padded(x: Tensor, initial_state: Tensor, reverse: bool) -> Tensor:
    """State and sequence in walking order, (batch, d_conv - 1 + length, channels), accumulation dtype."""
    walk = x.flip(1) if reverse else x
    joined = torch.cat([initial_state.transpose(1, 2), walk], dim=1)
    return joined.to(accumulation_dtype(x.dtype))


def _convolve(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    taps = weight.shape[1]
    length = padded.shape[1] - taps + 1
    y = torch.addcmul(bias, padded[:, :length], weight[:, 0])
    for k in range(1, taps):
        y.addcmul_(padded[:, k : k + length], weight[:, k])
    return y


def causal_conv1d_forward(
    x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Forward pass; arguments and results as in ``causal_conv1d_reference``."""
    padded = _padded(x, initial_state, reverse)
    acc = padded.dtype
    y = _convolve(padded, weight.to(acc), bias.to(acc))
    if silu:
        y = torch.nn.functional.silu(y, inplace=True)
    if reverse:
        y = y.flip(1)
    last_state = padded[:, x.shape[1] :].transpose(1, 2).to(x.dtype, copy=True)
    return y.to(x.dtype), last_state.contiguous()


def causal_conv1d_backward(
    dy: Tensor,
    dlast_state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_state: Tensor,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and initial_state; SiLU's input is recomputed."""
    padded = _padded(x, initial_state, reverse)
    acc = padded.dtype
    taps, length = weight.shape[1], x.shape[1]
    grad = (dy.flip(1) if reverse else dy).to(acc)
    w = weight.to(acc)
    if silu:
        before = _convolve(padded, w, bias.to(acc))
        gate = torch.sigmoid(before)
        grad = grad * gate * (1 + before * (1 - gate))
    dpadded = torch.zeros_like(padded)
    dweight = torch.empty_like(w)
    for k in range(taps):
        dpadded[:, k : k + length].addcmul_(grad, w[:, k])
        dweight[:, k] = (grad * padded[:, k : k + length]).sum((0, 1))
    dpadded[:, length:] += dlast_state.to(acc).transpose(1, 2)
    dx = dpadded[:, taps - 1 :]
    return (
        (dx.flip(1) if reverse else dx).to(x.dtype, copy=True),
        dweight.to(weight.dtype),
        grad.sum((0, 1)).to(bias.dtype),
        dpadded[:, : taps - 1].transpose(1, 2).to(initial_state.dtype).contiguous(),
    )
