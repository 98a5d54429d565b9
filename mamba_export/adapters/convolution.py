"""causal_conv1d's functions over our operator, channels-first as it has them (causal_conv1d 1.0 to 1.7)."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_export.adapters.unsupported import refuse
from mamba_export.operators import causal_conv1d
from mamba_export.operators.dtypes import accumulation_dtype

_ACTIVATIONS = {None: False, "silu": True, "swish": True}


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    *,
    silu: bool,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution, channels first.

    Args:
        x: (batch, channels, length).
        weight: (channels, d_conv).
        bias: (channels,), or None.
        initial_state: (batch, channels, d_conv - 1), the inputs before x, or None for zeros.
        silu: apply SiLU to the result.
        reverse: walk from the last step to the first.

    Returns:
        y (batch, channels, length) and last_state (batch, channels, d_conv - 1), in x's dtype.
    """
    wide = accumulation_dtype(x.dtype)
    y, last_state = causal_conv1d(
        x.transpose(1, 2),
        weight.to(wide),
        None if bias is None else bias.to(wide),
        None if initial_state is None else initial_state.to(x.dtype),
        silu=silu,
        reverse=reverse,
    )
    return y.transpose(1, 2), last_state


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """causal_conv1d's ``causal_conv1d_fn``: x (batch, channels, length), weight (channels, d_conv).

    Version 1.0 has the activation where later ones have seq_idx; a string there is taken for it.

    Raises:
        NotImplementedError: seq_idx is given, or the activation is unknown.
    """
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    if seq_idx is not None:
        refuse("causal_conv1d_fn with seq_idx", "run the sequences of a packed batch one by one")
    y, last_state = convolve(x, weight, bias, initial_states, silu=silu_of(activation))
    if not return_final_states:
        return y
    if final_states_out is not None:
        last_state = final_states_out.copy_(last_state)
    return y, last_state


def silu_of(activation: str | None) -> bool:
    """Whether an activation's name asks for SiLU. NotImplementedError for another than SiLU or none."""
    if activation not in _ACTIVATIONS:
        refuse(f"a convolution with activation={activation!r}", 'use None, "silu" or "swish"')
    return _ACTIVATIONS[activation]


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | bool | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """causal_conv1d's ``causal_conv1d_update``: more steps, with ``conv_state`` brought up to date.

    Args:
        x: (batch, channels) or (batch, channels, length).
        conv_state: (batch, channels, state_length) with the last inputs, d_conv - 1 of them or more.
        weight: (channels, d_conv).
        bias: (channels,), or None.
        activation: None, "silu" or "swish"; of the first versions, True or False.

    Raises:
        NotImplementedError: a circular state (cache_seqlens) or a state of other sequences is asked for.
    """
    if cache_seqlens is not None:
        refuse(
            "causal_conv1d_update with cache_seqlens", "give the state in order, newest step last"
        )
    if conv_state_indices is not None:
        refuse("causal_conv1d_update with conv_state_indices", "index the state before the call")
    silu = activation if isinstance(activation, bool) else silu_of(activation)
    steps = x.unsqueeze(-1) if x.dim() == 2 else x
    taps = weight.shape[1]
    past = conv_state[..., conv_state.shape[-1] - (taps - 1) :]
    y, _ = convolve(steps, weight, bias, past, silu=silu)
    inputs = torch.cat([conv_state, steps.to(conv_state.dtype)], dim=-1)
    conv_state.copy_(inputs[..., inputs.shape[-1] - conv_state.shape[-1] :])
    return y.squeeze(-1) if x.dim() == 2 else y
