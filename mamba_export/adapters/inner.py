"""mamba_ssm's fused mixers: convolution, projections, scan and gate in one call, channels first.

Signatures and meanings are those of mamba_ssm 2.3 and of Vim's fork of it (mamba-1p1p1). Each is the plain
sequence of its parts; an exporter that fuses layers finds them in the graph.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mamba_export.adapters.convolution import convolve
from mamba_export.adapters.scan import scan
from mamba_export.models.norms import rms


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """mamba_ssm's fused mixer, from the split of the input projection to the output projection.

    Args:
        xz: (batch, 2 * d_inner, length), the convolution's half and then the gate's.
        conv1d_weight: (d_inner, 1, d_conv).
        x_proj_weight: (dt_rank + 2 * d_state, d_inner).
        delta_proj_weight: (d_inner, dt_rank).
        out_proj_weight: (d_model, d_inner).
        A: (d_inner, d_state).
        B, C: None where x_proj gives them, else as in ``scan``.
        b_rms_weight, c_rms_weight, dt_rms_weight: root mean square norms of B, C and dt, or None.
        checkpoint_lvl: of mamba_ssm's backward pass; means nothing here.

    Returns:
        (batch, length, d_model).
    """
    y = mamba_inner_fn_no_out_proj(
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        A,
        B,
        C,
        D,
        delta_bias,
        B_proj_bias,
        C_proj_bias,
        delta_softplus,
        checkpoint_lvl,
        b_rms_weight=b_rms_weight,
        c_rms_weight=c_rms_weight,
        dt_rms_weight=dt_rms_weight,
        b_c_dt_rms_eps=b_c_dt_rms_eps,
    )
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    *,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
    reverse: bool = False,
    A_b: Tensor | None = None,
) -> Tensor:
    """``mamba_inner_fn`` without its output projection, as Vim's fork has it: y (batch, d_inner, length).

    ``reverse`` is ours: the same as flipping xz before and y after, without a copy. So is ``A_b``
    (d_inner, d_state): a second scan, the other way, is added.
    """
    x, z = xz.chunk(2, dim=1)
    x, _ = convolve(x, conv1d_weight.squeeze(1), conv1d_bias, None, silu=True, reverse=reverse)
    rank, states = delta_proj_weight.shape[1], A.shape[1]
    projected = F.linear(x.transpose(1, 2), x_proj_weight)  # dt, and B and C where they vary
    delta = F.linear(projected[..., :rank], delta_proj_weight)
    if dt_rms_weight is not None:
        delta = _rms_norm(delta, dt_rms_weight, b_c_dt_rms_eps)
    if B is None:
        B = projected[..., rank : rank + states]
        B = _projected(B, B_proj_bias, b_rms_weight, b_c_dt_rms_eps)
    if C is None:
        C = projected[..., projected.shape[-1] - states :]
        C = _projected(C, C_proj_bias, c_rms_weight, b_c_dt_rms_eps)
    delta = delta.transpose(1, 2)

    def scanned(A: Tensor, reverse: bool) -> Tensor:
        y, _ = scan(
            x,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            delta_softplus=delta_softplus,
            reverse=reverse,
        )
        return y

    y = scanned(A, reverse)
    return y if A_b is None else y + scanned(A_b, not reverse)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Vim's mixer of type v1: one convolution and projection, a scan forwards with A and one back with A_b."""
    y = mamba_inner_fn_no_out_proj(
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        A,
        B,
        C,
        D,
        delta_bias,
        B_proj_bias,
        C_proj_bias,
        delta_softplus,
        A_b=A_b,
    )
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def _projected(
    values: Tensor, bias: Tensor | None, norm_weight: Tensor | None, epsilon: float
) -> Tensor:
    """B or C of x_proj (batch, length, d_state), as (batch, d_state, length)."""
    if bias is not None:
        values = values + bias.to(values.dtype)
    if norm_weight is not None:
        values = _rms_norm(values, norm_weight, epsilon)
    return values.transpose(1, 2)


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return (rms(x, epsilon) * weight).to(x.dtype)
