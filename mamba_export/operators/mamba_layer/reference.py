"""The definition of a whole layer: norm, projections, convolution, scan and residual sum, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.dtypes import accumulation_dtype
from mamba_export.operators.selective_scan.reference import selective_scan_reference

Part = Callable[..., tuple[Tensor, Tensor]]


def mamba_layer_reference(
    hidden: Tensor,
    norm_weight: Tensor,
    in_proj_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_proj_weight: Tensor,
    conv_state: Tensor,
    recurrent_state: Tensor,
    epsilon: float = 1e-5,
    *,
    conv: Part = causal_conv1d_reference,
    scan: Part = selective_scan_reference,
) -> tuple[Tensor, Tensor, Tensor]:
    """A pre-norm residual layer (arXiv:2312.00752, section 3.4; norm: arXiv:1910.07467).

    .. code-block:: text

        x     = hidden / sqrt(mean(hidden^2) + epsilon) * norm_weight      rounded to T
        u, z  = split(x in_proj_weight)
        u     = silu(conv(u))
        dt, B, C = split(u x_proj_weight);  delta = dt dt_proj_weight
        y     = scan(u, delta, A, B, C, D, z)
        out   = hidden + y out_proj_weight

    T is the projections' dtype, R that of hidden: fp32 or T. Shapes are those of the contract's row.

    Args:
        hidden: (batch, length, d_model) R.
        norm_weight: (d_model,) fp32.
        in_proj_weight: (d_model, 2 d_inner) T, the convolution's columns, then the gate's.
        conv_weight, conv_bias: (d_inner, d_conv) and (d_inner,), fp32.
        x_proj_weight, dt_proj_weight: (d_inner, dt_rank + 2 d_state) and (dt_rank, d_inner), T.
        dt_bias, D: (d_inner,) fp32.
        A: (d_inner, d_state) fp32, negative.
        out_proj_weight: (d_inner, d_model) T.
        conv_state, recurrent_state: (batch, d_inner, d_conv - 1) T, and (batch, d_inner, d_state) fp32.
        epsilon: added under the root.
        conv, scan: the two operators, with the arguments of their references.

    Returns:
        hidden_out (batch, length, d_model) R, and the two states after the last step.
    """
    wide = hidden.to(accumulation_dtype(hidden.dtype))
    normed = wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    x = (normed * norm_weight).to(in_proj_weight.dtype)
    u, z = (x @ in_proj_weight).chunk(2, dim=-1)
    u, last_conv_state = conv(u, conv_weight, conv_bias, conv_state, True, False)
    rank, d_state = dt_proj_weight.shape[0], A.shape[1]
    dt, B, C = (u @ x_proj_weight).split([rank, d_state, d_state], dim=-1)
    delta = dt @ dt_proj_weight
    y, last_recurrent_state = scan(
        u, delta, A, B.unsqueeze(2), C.unsqueeze(2), D, z, dt_bias, recurrent_state, True, False
    )
    hidden_out = hidden + (y @ out_proj_weight).to(hidden.dtype)
    return hidden_out, last_conv_state, last_recurrent_state
