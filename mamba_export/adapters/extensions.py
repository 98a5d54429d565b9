"""The compiled modules that models call past the Python packages: selective_scan_cuda and its relatives.

The VMamba family imports them by name and falls back to a Python loop over the length where they are missing;
its exported graph would then hold a node a step. ``fwd`` returns what the compiled ones do; the intermediate
states hold the last state alone, at the place where callers read it. ``bwd`` returns gradients in the compiled
ones' order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_export.adapters.gradients import gradients
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


def mamba_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """``selective_scan_cuda.bwd``: gradients of u, delta, A, B, C, D, delta_bias; with a gate also of z, and
    then, where asked for, the gated result.

    Args:
        dout: gradient of the gated result (of the result, without a gate).
        x, out: what ``fwd`` returned; computed again here.
        dz: memory for z's gradient, or None.
    """

    def gated(*inputs: Tensor) -> Tensor:
        return scan(*inputs, delta_softplus=delta_softplus)[0].to(u.dtype)

    du, ddelta, dA, dB, dC, dD, found_dz, dbias = gradients(
        gated, (u, delta, A, B, C, D, z, delta_bias), dout
    )
    results = [du, ddelta, dA, dB, dC, dD, dbias]
    if z is not None:
        results.append(found_dz if dz is None or found_dz is None else dz.copy_(found_dz))
        if recompute_out_z:
            with torch.no_grad():
                results.append(mamba_fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus)[-1])
    return results


def core_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    """``bwd`` of the modules without a gate: gradients of u, delta, A, B, C, D and delta_bias.

    ``dout`` may be fp32 where u is not: the result of oflex is.
    """

    def ungated(*inputs: Tensor) -> Tensor:
        return scan(*inputs, delta_softplus=delta_softplus, dtype=dout.dtype)[0]

    found = gradients(ungated, (u, delta, A, B, C, D, None, delta_bias), dout)
    return [*found[:6], found[7]]


def ndstate_fwd(
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
    """``selective_scan_cuda_ndstate.fwd``: one state, which has no axis.

    A is (d_inner,), B and C are (batch, groups, length).
    """
    return core_fwd(
        u, delta, A[:, None], B[:, :, None], C[:, :, None], D, delta_bias, delta_softplus, nrows
    )


def ndstate_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    """``selective_scan_cuda_ndstate.bwd``: as ``core_bwd``, in the shapes of ``ndstate_fwd``."""
    found = core_bwd(
        u,
        delta,
        A[:, None],
        B[:, :, None],
        C[:, :, None],
        D,
        delta_bias,
        dout,
        x,
        delta_softplus,
        nrows,
    )
    shapes = [tensor.shape for tensor in (u, delta, A, B, C)]
    reshaped = [
        None if tensor is None else tensor.reshape(shape)
        for tensor, shape in zip(found[:5], shapes, strict=True)
    ]
    return [*reshaped, *found[5:]]
