"""mamba_ssm's and causal_conv1d's kernels, each in the layout and with the arguments that it likes best.

mamba_ssm keeps sequences as (batch, channels, length): it is given that layout, made beforehand. It starts
from a state of zeros, so it reads one tensor less than our operators.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def _channels_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).contiguous()


def scan_arguments(
    *,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    initial_state: Tensor,
) -> dict[str, Any]:
    """Arguments of ``selective_scan_fn`` from those of our operator; the initial state has no place there."""
    return {
        "u": _channels_first(u),
        "delta": _channels_first(delta),
        "A": A,
        "B": B.permute(0, 2, 3, 1).contiguous(),  # (batch, groups, d_state, length)
        "C": C.permute(0, 2, 3, 1).contiguous(),
        "D": D,
        "z": None if z is None else _channels_first(z),
        "delta_bias": delta_bias,
        "delta_softplus": True,
        "return_last_state": True,
    }


def scan(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """``mamba_ssm``'s scan: y (batch, channels, length) and the last state."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(**arguments)


def step_arguments(
    *,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    initial_state: Tensor,
) -> dict[str, Any]:
    """Arguments of ``selective_state_update``, which changes the state in place, from those of our operator."""
    return {
        "state": initial_state,
        "x": u[:, 0],
        "dt": delta[:, 0],
        "A": A,
        "B": B[:, 0, 0],
        "C": C[:, 0, 0],
        "D": D,
        "z": z[:, 0],
        "dt_bias": delta_bias,
        "dt_softplus": True,
    }


def step(arguments: dict[str, Any]) -> Tensor:
    """``mamba_ssm``'s step of the scan: y (batch, channels)."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    return selective_state_update(**arguments)


def conv_arguments(
    *, x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor
) -> dict[str, Any]:
    """Arguments of ``causal_conv1d_fn``; states have no place in its channels-first layout."""
    return {
        "x": _channels_first(x),
        "weight": weight.to(x.dtype),
        "bias": bias.to(x.dtype),
        "activation": "silu",
    }


def conv(arguments: dict[str, Any]) -> Tensor:
    """``causal_conv1d``'s convolution: (batch, channels, length)."""
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn(**arguments)
