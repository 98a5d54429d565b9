"""What the blocks share: states, the causal convolution's parameters, the initialisation of the step size."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mamba_export.models.config import ModelConfig
from mamba_export.models.norms import RMSNorm


class LayerState(NamedTuple):
    """What a block remembers between calls.

    conv: (batch, channels, d_conv - 1), the convolution's last inputs, oldest first, in the weights' dtype.
    recurrent: the scan's state: of Mamba-1 (batch, d_inner, d_state) fp32; of Mamba-2 (batch, heads, head_dim,
        d_state), fp32 or the weights' dtype.
    """

    conv: Tensor
    recurrent: Tensor


class DepthwiseConv(nn.Module):
    """Parameters of the causal convolution, laid out as in the checkpoints; the operator does the work."""

    def __init__(self, channels: int, taps: int, bias: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(taps)  # PyTorch's initialisation of a depthwise Conv1d
        self.weight = nn.Parameter(torch.empty(channels, 1, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None


class Mixer(nn.Module):
    """A block. ``forward(x, state) -> y, state`` serves prefill and decode alike.

    Args:
        config: of the model that it is a part of.
        projected: width of in_proj's output.

    Parameters that act on a channel or a head alone stay in fp32 when the model is cast with
    ``mamba_export.models.cast``: the operators take them so.
    """

    A_log: nn.Parameter
    out_proj: nn.Linear

    def __init__(self, config: ModelConfig, projected: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.d_model, projected, bias=config.bias)
        self.conv1d = DepthwiseConv(config.conv_channels, config.d_conv, config.conv_bias)
        self._shapes = (config.conv_channels, config.d_conv - 1), config.recurrent_shape

    def channel_parameters(self) -> list[nn.Parameter]:
        """Parameters that the operators take in fp32."""
        raise NotImplementedError

    @property
    def has_layer_operator(self) -> bool:
        """Whether a layer around this block is of the form of ``run_layer``'s operator."""
        raise NotImplementedError

    def run_layer(
        self, hidden: Tensor, norm: RMSNorm, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        """A whole pre-norm residual layer around this block as one operator: what export traces.

        Args:
            hidden: (batch, length, d_model), the residual stream.
            norm: of the layer.
            state: before it.

        Returns:
            The residual stream with the block's output added, and the state after.
        """
        raise NotImplementedError

    def conv_parameters(self) -> tuple[Tensor, Tensor]:
        """The convolution's weight (channels, d_conv) and bias (channels,), zeros where it has none."""
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias

    def initial_state(self, batch: int, dtype: torch.dtype | None = None) -> LayerState:
        """Zeros: what a sequence starts from. ``dtype`` is the convolution state's, the weights' if None."""
        conv, recurrent = self._shapes
        weight = self.in_proj.weight
        return LayerState(
            torch.zeros(batch, *conv, dtype=dtype or weight.dtype, device=weight.device),
            torch.zeros(batch, *recurrent, dtype=self.A_log.dtype, device=weight.device),
        )


@torch.no_grad()
def initial_dt_bias(config: ModelConfig, count: int) -> Tensor:
    """(count,) biases whose softplus is log-uniform in [dt_min, dt_max] (arXiv:2312.00752, section 3.6)."""
    low, high = math.log(config.dt_min), math.log(config.dt_max)
    dt = torch.exp(torch.empty(count).uniform_(low, high)).clamp(min=config.dt_floor)
    return dt + torch.log(-torch.expm1(-dt))  # inverse of softplus
