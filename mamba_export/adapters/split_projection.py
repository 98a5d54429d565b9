"""mamba_ssm's Mamba-2 mixer between its projections: convolution, scan, gated norm (split_conv1d)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.adapters.convolution import convolve_steps, silu_of
from mamba_export.adapters.gated_norms import rmsnorm_fn
from mamba_export.adapters.state_space import NO_LIMIT, check_chunk_size, scan_heads
from mamba_export.adapters.unsupported import PACKED, refuse

GatedNorm = Callable[[Tensor, Tensor], Tensor]
"""Of the scan's result and the gate's input, (batch, length, width) both."""


def mix(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm: GatedNorm | None,
    *,
    headdim: int | None,
    ngroups: int,
    activation: str | None = "silu",
    dt_limit: tuple[float, float] = NO_LIMIT,
    conv_state: Tensor | None = None,
    initial_states: Tensor | None = None,
    keep_state_dtype: bool = False,
) -> tuple[Tensor, Tensor]:
    """The mixer from behind its first projection to before its last one.

    Args:
        zxbcdt: (batch, length, 2 * d_mlp + 2 * width + 2 * ngroups * d_state + heads), where width is
            heads * headdim and d_mlp may be 0: an MLP's gate and value, then z, x, B, C and dt.
        conv1d_weight: (width + 2 * ngroups * d_state, d_conv), over x, B and C; conv1d_bias one axis, or None.
        dt_bias, A: (heads,).
        D: (heads,) or (heads, headdim).
        norm: called with the scan's result and z; None for a gate without a norm.
        headdim: needed where D has one axis.
        conv_state: (batch, width + 2 * ngroups * d_state, d_conv - 1), or None for zeros.
        initial_states, keep_state_dtype: as in ``scan_heads``.

    Returns:
        (batch, length, d_mlp + width), and the last state (batch, heads, headdim, d_state).

    Raises:
        ValueError: headdim is missing, or a width does not fit; the message names it.
    """
    if D.dim() == 2:
        headdim = D.shape[1]
    if headdim is None:
        raise ValueError("mamba_split_conv1d_scan_combined: headdim is missing, and D has one axis")
    heads = D.shape[0]
    width, channels = heads * headdim, conv1d_weight.shape[0]
    d_state, rest = divmod(channels - width, 2 * ngroups)
    d_mlp, odd = divmod(zxbcdt.shape[-1] - width - channels - heads, 2)
    if rest or d_state < 1 or odd or d_mlp < 0:
        raise ValueError(
            f"mamba_split_conv1d_scan_combined: {heads} heads of {headdim}, {ngroups} groups and "
            f"{channels} channels of the convolution do not fit a projection of {zxbcdt.shape[-1]}"
        )
    gate, value, z, xBC, dt = torch.split(zxbcdt, [d_mlp, d_mlp, width, channels, heads], dim=-1)
    xBC, _ = convolve_steps(xBC, conv1d_weight, conv1d_bias, conv_state, silu=silu_of(activation))
    x, B, C = torch.split(xBC, [width, ngroups * d_state, ngroups * d_state], dim=-1)
    split = (heads, headdim)
    y, last_state = scan_heads(
        x.unflatten(-1, split),
        dt,
        A,
        B.unflatten(-1, (ngroups, d_state)),
        C.unflatten(-1, (ngroups, d_state)),
        D,
        z.unflatten(-1, split) if norm is None else None,
        dt_bias,
        initial_states,
        dt_softplus=True,
        dt_limit=dt_limit,
        keep_state_dtype=keep_state_dtype,
    )
    y = y.flatten(-2)
    if norm is not None:
        y = norm(y, z)
    return (torch.cat([F.silu(gate) * value, y], dim=-1) if d_mlp else y), last_state


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """mamba_ssm's ``mamba_split_conv1d_scan_combined``; shapes as in ``mix``.

    Args:
        rmsnorm_weight: (width,), of a norm over each group's channels; None for a gate without a norm.
        norm_before_gate: RMSNorm(y) * silu(z), else RMSNorm(y * silu(z)).
        outproj_weight: (d_model, d_mlp + width); outproj_bias (d_model,); None for no projection.

    Returns:
        (batch, length, d_model), or (batch, length, d_mlp + width) without a projection; with
        ``return_final_states`` also the last state (batch, heads, headdim, d_state).

    Raises:
        NotImplementedError: seq_idx is given, or the activation is unknown.
        ValueError: chunk_size is below 1, or a size does not fit.
    """
    check_chunk_size("mamba_split_conv1d_scan_combined", chunk_size)
    if seq_idx is not None:
        refuse(
            "mamba_split_conv1d_scan_combined with seq_idx",
            PACKED,
        )
    y, last_state = mix(
        zxbcdt,
        conv1d_weight,
        conv1d_bias,
        dt_bias,
        A,
        D,
        group_norm(rmsnorm_weight, rmsnorm_eps, ngroups, norm_before_gate),
        headdim=headdim,
        ngroups=ngroups,
        activation=activation,
        dt_limit=dt_limit,
        initial_states=initial_states,
    )
    if outproj_weight is not None:
        y = F.linear(y, outproj_weight, outproj_bias)
    return (y, last_state) if return_final_states else y


def group_norm(
    weight: Tensor | None, eps: float, ngroups: int, norm_before_gate: bool
) -> GatedNorm | None:
    """The norm of the fused mixer, a group's channels alone; None where there is no weight."""
    if weight is None:
        return None
    group_size = weight.shape[0] // ngroups

    def norm(y: Tensor, z: Tensor) -> Tensor:
        return rmsnorm_fn(y, weight, None, z, eps, group_size, norm_before_gate)

    return norm
