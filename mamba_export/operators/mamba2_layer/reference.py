"""The definition of a whole layer of Mamba-2, in plain PyTorch: norms, projections, convolution, duality."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mamba_export.contract.operators import LARGEST
from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.dtypes import accumulation_dtype
from mamba_export.operators.gated_rms_norm.reference import gated_rms_norm_reference
from mamba_export.operators.state_space_dual.reference import state_space_dual_reference

Part = Callable[..., tuple[Tensor, Tensor]]


def mamba2_layer_reference(
    hidden: Tensor,
    norm_weight: Tensor,
    in_proj_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    gate_norm_weight: Tensor,
    out_proj_weight: Tensor,
    conv_state: Tensor,
    recurrent_state: Tensor,
    epsilon: float = 1e-5,
    gate_epsilon: float = 1e-5,
    dt_min: float = 0.0,
    dt_max: float = LARGEST,
    *,
    conv: Part = causal_conv1d_reference,
    dual: Part = state_space_dual_reference,
    norm: Callable[..., Tensor] = gated_rms_norm_reference,
) -> tuple[Tensor, Tensor, Tensor]:
    """A pre-norm residual layer of Mamba-2 (arXiv:2405.21060, section 7.1, figure 6; norm: arXiv:1910.07467).

    .. code-block:: text

        n          = hidden / sqrt(mean(hidden^2) + epsilon) * norm_weight      rounded to T
        z, xBC, dt = split(n in_proj_weight)
        x, B, C    = split(silu(conv(xBC)))
        y          = state_space_dual(x, dt, A, B, C, D)
        out        = hidden + gated_norm(y, z) out_proj_weight

    T is the projections' dtype, R that of hidden and S that of the recurrent state: each fp32 or T.
    ``d_inner`` is n_groups * group_heads * head_dim, and the convolution has d_inner + 2 n_groups d_state
    channels. Shapes are those of the contract's row.

    Args:
        hidden: (batch, length, d_model) R.
        norm_weight: (d_model,) fp32.
        in_proj_weight: (d_model, 2 d_inner + 2 n_groups d_state + heads) T: columns of z, x, B, C and dt.
        conv_weight, conv_bias: (channels, d_conv) and (channels,), fp32.
        dt_bias, A: (heads,) fp32; A negative.
        D: (heads, d_skip) fp32.
        gate_norm_weight: (n_groups, group_heads, head_dim) fp32.
        out_proj_weight: (d_inner, d_model) T.
        conv_state: (batch, channels, d_conv - 1) T, oldest step first.
        recurrent_state: (batch, heads, head_dim, d_state) S.
        epsilon, gate_epsilon: added under the root of the first norm, and of the gated one, which is of each
            group's channels alone.
        dt_min, dt_max: limits of dt, after its bias and softplus.
        conv, dual, norm: the three operators, with the arguments of their references.

    Returns:
        hidden_out (batch, length, d_model) R, and the two states after the last step.
    """
    wide = hidden.to(accumulation_dtype(hidden.dtype))
    normed = wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    _, heads, head_dim, d_state = recurrent_state.shape
    n_groups, d_inner = gate_norm_weight.shape[0], heads * head_dim
    z, xBC, dt = ((normed * norm_weight).to(in_proj_weight.dtype) @ in_proj_weight).split(
        [d_inner, conv_weight.shape[0], heads], dim=-1
    )
    xBC, last_conv_state = conv(xBC, conv_weight, conv_bias, conv_state, True, False)
    x, B, C = xBC.split([d_inner, n_groups * d_state, n_groups * d_state], dim=-1)
    y, last_recurrent_state = dual(
        x.unflatten(-1, (heads, head_dim)),
        dt,
        A,
        B.unflatten(-1, (n_groups, d_state)),
        C.unflatten(-1, (n_groups, d_state)),
        D,
        None,
        None,
        dt_bias,
        recurrent_state,
        True,
        dt_min,
        dt_max,
        False,
    )
    y = norm(
        y.flatten(2).unflatten(-1, (n_groups, -1)),
        z.unflatten(-1, (n_groups, -1)),
        gate_norm_weight.flatten(1),
        gate_epsilon,
        False,
    )
    hidden_out = hidden + (y.flatten(2) @ out_proj_weight).to(hidden.dtype)
    return hidden_out, last_conv_state, last_recurrent_state
