"""The private names of mamba_ssm.ops.triton.ssd_combined that packages build autograd functions of (Hydra)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.adapters.gradients import gradients
from mamba_export.adapters.state_space import (
    NO_LIMIT,
    check_chunk_size,
    mamba_chunk_scan_combined,
    scan_heads,
)
from mamba_export.adapters.unsupported import PACKED, refuse
from mamba_export.operators.dtypes import accumulation_dtype


def chunk_scan_fwd(
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
) -> tuple[Tensor | None, ...]:
    """``_mamba_chunk_scan_combined_fwd``: out, out_x, dt, dA_cumsum, states, final_states.

    out_x is the result before the gate, None without one. dt, dA_cumsum and states are of mamba_ssm's own
    chunks, and None here; ``_mamba_chunk_scan_combined_bwd`` does not ask for them.

    mamba_ssm's kernel multiplies by the gate in fp32 and rounds both results once. Of 16 bits out_x is rounded
    already, so that the gated result needs a scan of its own; in fp32 and float64 one scan makes both.
    """
    if z is not None and z.shape != x.shape:
        raise ValueError(
            f"_mamba_chunk_scan_combined_fwd: z has shape {tuple(z.shape)}, expected {tuple(x.shape)}"
        )
    is_wide = x.dtype == accumulation_dtype(x.dtype)
    gate = None if is_wide else z
    out, last = mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D, gate, dt_bias, initial_states, seq_idx,
        dt_softplus=dt_softplus, dt_limit=dt_limit, return_final_states=True,
        return_varlen_states=cu_seqlens is not None,
    )  # fmt: skip
    if z is None:
        return out, None, None, None, None, last
    if is_wide:
        return out * F.silu(z.to(x.dtype)), out, None, None, None, last
    ungated, _ = scan_heads(
        x, dt, A, B, C, D, None, dt_bias, initial_states, dt_softplus=dt_softplus, dt_limit=dt_limit
    )  # fmt: skip
    return out, ungated, None, None, None, last


def chunk_scan_bwd(
    dout: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    out: Tensor | None,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dfinal_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    dx: Tensor | None = None,
    ddt: Tensor | None = None,
    dB: Tensor | None = None,
    dC: Tensor | None = None,
    dz: Tensor | None = None,
    recompute_output: bool = False,
) -> tuple[Tensor | None, ...]:
    """``_mamba_chunk_scan_combined_bwd``: gradients of x, dt, A, B, C, D, z, dt_bias and initial_states.

    Args:
        dout, dfinal_states: gradients of ``out`` (after the gate) and of the last state, which may be None.
        out: what the forward returned; computed again here.
        dx, ddt, dB, dC, dz: memory for those gradients, or None.
        recompute_output: with z, also return the gated result.
    """
    check_chunk_size("_mamba_chunk_scan_combined_bwd", chunk_size)
    if seq_idx is not None:
        refuse("_mamba_chunk_scan_combined_bwd with seq_idx", PACKED)

    def scanned(*inputs: Any) -> tuple[Tensor, Tensor]:
        return scan_heads(*inputs, dt_softplus=dt_softplus, dt_limit=dt_limit)

    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_states)
    found = gradients(scanned, inputs, dout, dfinal_states)
    memory = (dx, ddt, None, dB, dC, None, dz, None, None)
    kept = [
        one if place is None or one is None else place.copy_(one)
        for place, one in zip(memory, found, strict=True)
    ]
    if z is None or not recompute_output:
        return tuple(kept)
    with torch.no_grad():
        return (*kept, scanned(*inputs)[0])
