"""The compiled modules that models call past the Python packages: selective_scan_cuda and its relatives.

The VMamba family imports them by name and falls back to a Python loop over the length where they are missing;
its exported graph would then hold a node a step. ``fwd`` returns what the compiled ones do; the intermediate
states hold the last state alone, at the place where callers read it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_export.adapters.scan import scan
from mamba_export.operators.dtypes import accumulation_dtype


def _states(last_state: Tensor) -> Tensor:
    """Intermediate states (batch, d_inner, 1, 2 * d_state): ``x[:, :, -1, 1::2]`` is the last state."""
    return torch.stack([torch.ones_like(last_state), last_state], dim=-1).flatten(2).unsqueeze(2)


def mamba_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """``selective_scan_cuda.fwd``: [out, x], and out_z where there is a gate; out is before the gate."""
    out, last_state = scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus=delta_softplus)
    results = [out.to(u.dtype), _states(last_state)]
    if z is not None:
        gated, _ = scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus)
        results.append(gated.to(u.dtype))
    return results


def core_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor]:
    """``selective_scan_cuda_core.fwd`` and ``selective_scan_cuda_nrow.fwd``: [out, x], out in u's dtype."""
    return mamba_fwd(u, delta, A, B, C, D, None, delta_bias, delta_softplus)


def oflex_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
    out_float: bool = True,
) -> list[Tensor]:
    """``selective_scan_cuda_oflex.fwd``: [out, x]; out is fp32 from inputs of any dtype where ``out_float``."""
    if not out_float:
        return core_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows)
    out, last_state = scan(
        u,
        delta,
        A,
        B,
        C,
        D,
        None,
        delta_bias,
        delta_softplus=delta_softplus,
        dtype=accumulation_dtype(u.dtype),
    )
    return [out, _states(last_state)]
