"""causal_conv1d's functions over our operator, channels-first as it has them (causal_conv1d 1.0 to 1.7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_export.adapters.gradients import gradients
from mamba_export.adapters.unsupported import PACKED, refuse
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
    y, last_state = convolve_steps(
        x.transpose(1, 2), weight, bias, initial_state, silu=silu, reverse=reverse
    )
    return y.transpose(1, 2), last_state


def convolve_steps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    *,
    silu: bool,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """``convolve`` of x (batch, length, channels), as y then is."""
    wide = accumulation_dtype(x.dtype)
    return causal_conv1d(
        x,
        weight.to(wide),
        None if bias is None else bias.to(wide),
        None if initial_state is None else initial_state.to(x.dtype),
        silu=silu,
        reverse=reverse,
    )


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
        refuse("causal_conv1d_fn with seq_idx", PACKED)
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


def compiled_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor | None:
    """``causal_conv1d_cuda.causal_conv1d_fwd`` in each of its calling forms, which are told by their number.

    ``silu`` alone (1.0); ``seq_idx, silu`` (1.1); ``seq_idx, initial_states, final_states_out, silu`` (1.2);
    ``seq_idx, initial_states, out, final_states_out, silu`` (1.5), which writes ``out`` and returns nothing.
    """
    *others, silu = arguments
    if others and others[0] is not None:
        refuse("causal_conv1d_fwd with seq_idx", PACKED)
    initial_states = others[1] if len(others) > 1 else None
    y, last_state = convolve(x, weight, bias, initial_states, silu=bool(silu))
    if len(others) > 2 and others[-1] is not None:
        others[-1].copy_(last_state)
    if len(others) == 4:
        others[2].copy_(y)
        return None
    return y


def compiled_bwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, dout: Tensor, *arguments: Any
) -> list[Tensor | None]:
    """``causal_conv1d_cuda.causal_conv1d_bwd``: gradients of x, weight and bias.

    ``dx, silu`` (1.0); ``seq_idx, dx, silu`` (1.1); ``seq_idx, initial_states, dfinal_states, dx,
    return_dinitial_states, silu`` (1.2), which gives the initial state's gradient too. ``dx`` is memory for x's
    gradient, or None.
    """
    *others, silu = arguments
    if len(others) > 1 and others[0] is not None:
        refuse("causal_conv1d_bwd with seq_idx", PACKED)
    with_state = len(others) == 5
    initial_states = others[1] if with_state else None
    if with_state and others[2] is not None:
        refuse("causal_conv1d_bwd with dfinal_states", "use causal_conv1d_fn, which has gradients")
    dx = others[3] if with_state else others[-1]

    def function(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> Tensor:
        return convolve(x, weight, bias, state, silu=bool(silu))[0]

    found = gradients(function, (x, weight, bias, initial_states), dout)
    if dx is not None and found[0] is not None:
        found[0] = dx.copy_(found[0])
    return found if with_state else found[:3]


def compiled_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """``causal_conv1d_cuda.causal_conv1d_update``; see ``causal_conv1d_update``."""
    return causal_conv1d_update(
        x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices
    )
