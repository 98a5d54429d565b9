"""mamba_ssm's state space duality: its Triton kernels, with the chunk length that its models use."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_CHUNK = 256


def sequence_arguments(
    *,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: None,
    log_decay: None,
    dt_bias: Tensor,
    initial_state: None,
) -> dict[str, Any]:
    """Arguments of ``mamba_chunk_scan_combined`` from those of our operator; it starts from zeros."""
    return {
        "x": x,
        "dt": dt,
        "A": A,
        "B": B,
        "C": C,
        "chunk_size": _CHUNK,
        "D": D[:, 0],
        "z": z,
        "dt_bias": dt_bias,
        "dt_softplus": True,
        "return_final_states": True,
    }


def sequence(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """``mamba_ssm``'s chunked scan: y (batch, length, heads, head_dim) and the last state."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined(**arguments)


def step_arguments(
    *,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: None,
    log_decay: None,
    dt_bias: Tensor,
    initial_state: Tensor,
) -> dict[str, Any]:
    """Arguments of ``selective_state_update``, which changes the state in place.

    A number of a head is an expanded view, by which it knows Mamba-2's form and loads it once.
    """
    batch, _, heads, head_dim = x.shape
    d_state = B.shape[-1]
    return {
        "state": initial_state,
        "x": x[:, 0],
        "dt": dt[:, 0, :, None].expand(batch, heads, head_dim),
        "A": A[:, None, None].expand(heads, head_dim, d_state),
        "B": B[:, 0],
        "C": C[:, 0],
        "D": D.expand(heads, head_dim),
        "z": z,
        "dt_bias": dt_bias[:, None].expand(heads, head_dim),
        "dt_softplus": True,
    }


def step(arguments: dict[str, Any]) -> Tensor:
    """``mamba_ssm``'s step: y (batch, heads, head_dim)."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    return selective_state_update(**arguments)
