"""mamba_ssm.ops.selective_scan_interface: its functions over our operators, channels-first as it has them.

Signatures and meanings are those of mamba_ssm 2.3 (Mamba, arXiv:2312.00752, section 3); each function is plain
PyTorch around ``selective_scan``, so that it runs, trains and exports on any machine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mamba_export.adapters.unsupported import refuse
from mamba_export.operators import selective_scan
from mamba_export.operators.dispatch import forced
from mamba_export.operators.dtypes import accumulation_dtype


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The scan of mamba_ssm's layouts, channels first.

    Args:
        u, delta, z: (batch, d_inner, length), floating.
        A: (d_inner, d_state), real.
        B, C: (d_inner, d_state) where they do not vary, (batch, d_state, length), or
            (batch, groups, d_state, length).
        D, delta_bias: (d_inner,), or None.
        delta_softplus: apply softplus to ``delta + delta_bias``.
        initial_state: (batch, d_inner, d_state) fp32, or None for zeros.
        reverse: walk from the last step to the first.
        dtype: of the result, and of the arithmetic's inputs; None for the widest of u, delta, B, C and z.

    Returns:
        y (batch, d_inner, length) in ``dtype``, last_state (batch, d_inner, d_state) fp32 (float64 of float64).

    Raises:
        NotImplementedError: A, B or C is complex.
        ValueError: shapes that do not fit; the message names the tensor.
    """
    for name, tensor in (("A", A), ("B", B), ("C", C)):
        if tensor.is_complex():
            refuse(f"selective_scan_fn with a complex {name}", "no published model has one")
    if dtype is None:
        dtype = u.dtype
        for tensor in (delta, B, C, *([] if z is None else [z])):
            dtype = torch.promote_types(dtype, tensor.dtype)
    wide = accumulation_dtype(dtype)
    channels, length = u.shape[1], u.shape[2]

    def steps(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).transpose(1, 2)

    grouped_B, grouped_C = (_grouped(t.to(dtype), u.shape[0], length) for t in (B, C))
    groups = math.lcm(grouped_B.shape[2], grouped_C.shape[2])
    if channels % groups:
        raise ValueError(
            f"selective_scan_fn: B has {grouped_B.shape[2]} groups, C {grouped_C.shape[2]} and u {channels} "
            "channels: groups must divide the channels"
        )
    y, last_state = selective_scan(
        steps(u),
        steps(delta),
        A.to(wide),
        _repeated(grouped_B, groups),
        _repeated(grouped_C, groups),
        None if D is None else D.to(wide),
        None if z is None else steps(z),
        None if delta_bias is None else delta_bias.to(wide),
        None if initial_state is None else initial_state.to(wide),
        delta_softplus=delta_softplus,
        reverse=reverse,
    )
    return y.transpose(1, 2), last_state


def _grouped(tensor: Tensor, batch: int, length: int) -> Tensor:
    """B or C as (batch, length, groups, d_state); one that does not vary has a group a channel."""
    if tensor.dim() == 2:
        return tensor.expand(batch, length, *tensor.shape)
    if tensor.dim() == 3:
        return tensor.transpose(1, 2).unsqueeze(2)
    return tensor.permute(0, 3, 1, 2)


def _repeated(tensor: Tensor, groups: int) -> Tensor:
    times = groups // tensor.shape[2]
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=2)


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """mamba_ssm's ``selective_scan_fn``; shapes as in ``scan``. y (batch, d_inner, length) has u's dtype."""
    y, last_state = scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus)
    y = y.to(u.dtype)
    return (y, last_state) if return_last_state else y


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same by the definition, a step at a time: our reference implementation, whatever is installed."""
    with forced("reference"):
        return selective_scan_fn(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
        )


def ungated_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
) -> Tensor:
    """``selective_scan_fn`` of VMamba's first package, ``selective_scan``: no gate, no last state."""
    return scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus=delta_softplus)[0].to(
        u.dtype
    )


def ungated_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
) -> Tensor:
    """The same by the definition."""
    with forced("reference"):
        return ungated_scan_fn(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows)
