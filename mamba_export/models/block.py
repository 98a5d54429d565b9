"""The Mamba block: projections, causal convolution, selective scan, gate (paper, section 3.4, figure 3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mamba_export import operators
from mamba_export.models.config import MambaConfig


class LayerState(NamedTuple):
    """What a block remembers between calls.

    conv: (batch, d_inner, d_conv - 1), the convolution's last inputs, oldest first, in the weights' dtype.
    recurrent: (batch, d_inner, d_state) fp32, the scan's state.
    """

    conv: Tensor
    recurrent: Tensor


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


class DepthwiseConv(nn.Module):
    """Parameters of the causal convolution, laid out as in the checkpoints; the operator does the work."""

    def __init__(self, channels: int, taps: int, bias: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(taps)  # PyTorch's initialisation of a depthwise Conv1d
        self.weight = nn.Parameter(torch.empty(channels, 1, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None


class Mamba(nn.Module):
    """One Mamba mixer. ``forward(x, state) -> y, state`` serves prefill and decode alike.

    Parameters that act on a channel alone (A_log, D, the convolution, the step size's bias) stay in fp32
    when the model is cast with ``mamba_export.models.cast``: the operators take them so.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config = MambaConfig.of(config)
        d_inner, d_state, rank = config.inner, config.d_state, config.rank
        self.in_proj = nn.Linear(config.d_model, 2 * d_inner, bias=config.bias)
        self.conv1d = DepthwiseConv(d_inner, config.d_conv, config.conv_bias)
        self.x_proj = nn.Linear(d_inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, d_inner, bias=True)
        # S4D-Real initialisation: A_n = -(n + 1) (section 3.6).
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1).repeat(d_inner, 1)))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=config.bias)
        self._initialise_dt()

    @torch.no_grad()
    def _initialise_dt(self) -> None:
        """softplus(dt_proj.bias) is log-uniform in [dt_min, dt_max] (section 3.6)."""
        config = self.config
        bound = config.rank**-0.5
        self.dt_proj.weight.uniform_(-bound, bound)
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        dt = torch.exp(torch.empty(config.inner).uniform_(low, high)).clamp(min=config.dt_floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus

    def channel_parameters(self) -> list[nn.Parameter]:
        """Parameters that act on a channel alone; the operators take them in fp32."""
        parameters = [self.A_log, self.D, self.conv1d.weight, self.conv1d.bias, self.dt_proj.bias]
        return [parameter for parameter in parameters if parameter is not None]

    def initial_state(self, batch: int, dtype: torch.dtype | None = None) -> LayerState:
        """Zeros: what a sequence starts from. ``dtype`` is the convolution state's, the weights' if None."""
        config, weight = self.config, self.in_proj.weight
        conv = torch.zeros(
            batch,
            config.inner,
            config.d_conv - 1,
            dtype=dtype or weight.dtype,
            device=weight.device,
        )
        recurrent = torch.zeros(
            batch, config.inner, config.d_state, dtype=self.A_log.dtype, device=weight.device
        )
        return LayerState(conv, recurrent)

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """Mix a sequence, or the next part of one.

        Args:
            x: (batch, length, d_model) in the weights' dtype, length >= 1.
            state: the state that the previous part returned; None at the start.

        Returns:
            y (batch, length, d_model) and the state after the last step.

        Raises:
            ValueError: length 0, or a state of the wrong shape or dtype.
        """
        config = self.config
        u, z = self.in_proj(x).chunk(2, dim=-1)  # (batch, length, d_inner) each
        if state is None:
            state = self.initial_state(x.shape[0], u.dtype)
        u, conv_state = operators.causal_conv1d(
            u, self.conv1d.weight.squeeze(1), self.conv1d.bias, state.conv
        )
        dt, B, C = self.x_proj(u).split([config.rank, config.d_state, config.d_state], dim=-1)
        if config.bcdt_norm_epsilon is not None:
            dt, B, C = (rms(t, config.bcdt_norm_epsilon).to(u.dtype) for t in (dt, B, C))
        delta = nn.functional.linear(
            dt, self.dt_proj.weight
        )  # the bias is added in the scan, in fp32
        A = -torch.exp(self.A_log)
        y, recurrent_state = operators.selective_scan(
            u, delta, A, B, C, self.D, z, self.dt_proj.bias, state.recurrent
        )
        return self.out_proj(y), LayerState(conv_state, recurrent_state)
