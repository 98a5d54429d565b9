"""mamba_ssm.ops.triton.ssd_combined: Mamba-2's scan over our operator.

Signatures and meanings are those of mamba_ssm 2.3 (arXiv:2405.21060, section 6). A chunk's length decides
nothing: the kernel takes its own, and any length of the sequence is right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mamba_export.adapters.unsupported import PACKED, refuse
from mamba_export.operators import state_space_dual
from mamba_export.operators.dispatch import forced
from mamba_export.operators.dtypes import accumulation_dtype

NO_LIMIT = (0.0, math.inf)
"""``dt_limit`` that limits nothing but negative steps."""


def check_chunk_size(caller: str, chunk_size: int) -> None:
    """ValueError where a chunk would hold no step."""
    if chunk_size < 1:
        raise ValueError(f"{caller}: chunk_size is {chunk_size}, expected at least 1")


def scan_heads(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    keep_state_dtype: bool = False,
) -> tuple[Tensor, Tensor]:
    """The scan in the dtypes that mamba_ssm mixes.

    Args:
        x, z: (batch, length, heads, head_dim), floating; z None for no gate.
        dt: (batch, length, heads).
        A: (heads,).
        B, C: (batch, length, groups, d_state); groups divide the heads.
        D: (heads,) or (heads, head_dim), or None.
        dt_bias: (heads,), or None.
        initial_states: (batch, heads, head_dim, d_state), or None for zeros.
        dt_softplus: apply softplus to ``dt + dt_bias``.
        dt_limit: limits of the step size, after softplus.
        keep_state_dtype: states stay in x's dtype where ``initial_states`` have it; else they are fp32.

    Returns:
        y (batch, length, heads, head_dim) in x's dtype, computed in the widest of x, dt, B, C and z; the last
        state (batch, heads, head_dim, d_state) in fp32 (float64 of float64).

    Raises:
        ValueError: shapes that do not fit; the message names the tensor.
    """
    dtype = x.dtype
    for tensor in (dt, B, C, *([] if z is None else [z])):
        dtype = torch.promote_types(dtype, tensor.dtype)
    wide = accumulation_dtype(dtype)
    if initial_states is not None and not (keep_state_dtype and initial_states.dtype == dtype):
        initial_states = initial_states.to(wide)
    y, last_state = state_space_dual(
        x.to(dtype),
        dt.to(dtype),
        A.to(wide),
        B.to(dtype),
        C.to(dtype),
        None if D is None else D.to(wide),
        None if z is None else z.to(dtype),
        None,
        None if dt_bias is None else dt_bias.to(wide),
        initial_states,
        dt_softplus=dt_softplus,
        dt_min=dt_limit[0],
        dt_max=dt_limit[1],
    )
    return y.to(x.dtype), last_state


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """mamba_ssm's ``mamba_chunk_scan_combined``; shapes as in ``scan_heads``.

    ``cu_seqlens`` is read with ``return_varlen_states`` alone, in mamba_ssm too.

    Returns:
        y (batch, length, heads, head_dim) in x's dtype; with ``return_final_states`` also the last state.

    Raises:
        NotImplementedError: seq_idx is given, or return_varlen_states is asked for.
        ValueError: chunk_size is below 1.
    """
    caller = "mamba_chunk_scan_combined"
    check_chunk_size(caller, chunk_size)
    if seq_idx is not None:
        refuse(f"{caller} with seq_idx", PACKED)
    if return_varlen_states:
        refuse(f"{caller} with return_varlen_states", PACKED)
    y, last_state = scan_heads(
        x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus=dt_softplus, dt_limit=dt_limit
    )
    return (y, last_state) if return_final_states else y


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """mamba_ssm's ``mamba_chunk_scan``: y alone, from no state."""
    check_chunk_size("mamba_chunk_scan", chunk_size)
    return scan_heads(x, dt, A, B, C, D, z, dt_bias, dt_softplus=dt_softplus)[0]


def ssd_chunk_scan_combined_ref(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """The same by the definition, a step at a time: our reference implementation, whatever is installed."""
    with forced("reference"):
        return mamba_chunk_scan(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus)
