"""mamba_ssm.ops.triton.layernorm_gated: norms with a gate, whole or in groups (Mamba-2, arXiv:2405.21060)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export.adapters.gradients import gradients
from mamba_export.operators import gated_rms_norm
from mamba_export.operators.dispatch import forced
from mamba_export.operators.dtypes import accumulation_dtype


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """norm(x) * silu(z), or norm(x * silu(z)).

    Args:
        x, z: (..., width); z None for no gate.
        weight, bias: (width,); bias None for none.
        eps: added to the mean square under the root.
        group_size: channels that share a mean square; None for all.
        norm_before_gate: the gate follows the norm; else it comes before.
        is_rms_norm: root mean square norm, else layer norm.

    Returns:
        (..., width) in x's dtype; arithmetic in fp32 (float64 of float64).
    """
    if is_rms_norm and bias is None and z is not None and z.dtype == x.dtype and x.dim() in (2, 3):
        return _gated_rms_norm(x, z, weight, eps, group_size, norm_before_gate)
    wide = accumulation_dtype(x.dtype)
    gate = None if z is None else F.silu(z.to(wide))
    y = x.to(wide)
    if gate is not None and not norm_before_gate:
        y = y * gate
    grouped = y if group_size is None else y.unflatten(-1, (-1, group_size))
    if not is_rms_norm:
        grouped = grouped - grouped.mean(-1, keepdim=True)
    grouped = grouped / torch.sqrt(grouped.pow(2).mean(-1, keepdim=True) + eps)
    y = (grouped if group_size is None else grouped.flatten(-2)) * weight.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


def _gated_rms_norm(
    x: Tensor, z: Tensor, weight: Tensor, eps: float, group_size: int | None, norm_before_gate: bool
) -> Tensor:
    """Our operator, which has three axes."""
    width = x.shape[-1]
    three = x.dim() == 3
    y = gated_rms_norm(
        x if three else x.unsqueeze(0),
        z if three else z.unsqueeze(0),
        weight.to(accumulation_dtype(x.dtype)),
        groups=1 if group_size is None else width // group_size,
        epsilon=eps,
        norm_before_gate=norm_before_gate,
    )
    return y if three else y.squeeze(0)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """``layernorm_fn`` with the root mean square norm."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """``rmsnorm_fn`` by its definition, whatever is installed; in fp32 with ``upcast`` or without."""
    with forced("reference"):
        return rmsnorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate)


def layer_norm_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    z: Tensor | None = None,
    out: Tensor | None = None,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> tuple[Tensor, None, None]:
    """``_layer_norm_fwd``: the result, written into ``out`` where that is memory for it.

    The mean and the inverse deviation that mamba_ssm hands to ``_layer_norm_bwd`` are None: that computes them.
    """
    y = layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm)
    return (y if out is None else out.copy_(y)), None, None


def layer_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    mean: Tensor | None,
    rstd: Tensor | None,
    z: Tensor | None = None,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    recompute_output: bool = False,
    dz: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """``_layer_norm_bwd``: gradients of x, weight, bias and z; with ``recompute_output`` also the result.

    Args:
        dy: gradient of the result.
        mean, rstd: what the forward returned; computed again here.
        dz, out: memory for z's gradient and for the result, or None.
    """

    def normed(x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor | None) -> Tensor:
        return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm)

    found = gradients(normed, (x, weight, bias, z), dy)
    if dz is not None and found[3] is not None:
        found[3] = dz.copy_(found[3])
    if not recompute_output:
        return tuple(found)
    with torch.no_grad():
        y = normed(x, weight, bias, z)
    return (*found, y if out is None else out.copy_(y))


class LayerNorm(nn.Module):
    """Gated layer norm: weight and bias (hidden_size,)."""

    is_rms_norm = False
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        bias = None if self.is_rms_norm else nn.Parameter(torch.empty_like(self.weight))
        self.register_parameter("bias", bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of 1, biases of 0."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """x, z (..., hidden_size) -> as ``layernorm_fn``."""
        return layernorm_fn(
            x,
            self.weight,
            self.bias,
            z,
            self.eps,
            self.group_size,
            self.norm_before_gate,
            self.is_rms_norm,
        )


class RMSNorm(LayerNorm):
    """Gated root mean square norm: weight (hidden_size,), no bias."""

    is_rms_norm = True
