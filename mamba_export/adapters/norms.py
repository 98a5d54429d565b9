"""mamba_ssm.ops.triton.layer_norm and its older home layernorm: norms that add a residual on their way.

The two homes have their arguments in different orders, and models pass them by position; each keeps its own.
Arithmetic is fp32 (float64 of float64), as in the Triton kernels: y has x's dtype, the residual its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export.adapters.unsupported import refuse
from mamba_export.models.norms import rms
from mamba_export.operators.dtypes import accumulation_dtype

Normed = Tensor | tuple[Tensor, Tensor]


def add_and_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
    prenorm: bool,
    residual_in_fp32: bool,
    is_rms_norm: bool,
) -> Normed:
    """norm(x + residual).

    Args:
        x, residual: (..., width); residual None for none.
        weight, bias: (width,); bias None for none.
        eps: added to the mean square under the root.
        prenorm: return the sum too, before the norm.
        residual_in_fp32: that sum is fp32 where there is no residual yet; else it has the residual's dtype.
        is_rms_norm: root mean square norm (arXiv:1910.07467), else layer norm (arXiv:1607.06450).

    Returns:
        y (..., width) in x's dtype; with ``prenorm`` also the sum.
    """
    wide = accumulation_dtype(x.dtype)
    total = x.to(wide)
    kept = torch.float32 if residual_in_fp32 else x.dtype
    if residual is not None:
        total = total + residual.to(wide)
        kept = residual.dtype
    if is_rms_norm:
        y = rms(total, eps) * weight.to(wide)
        if bias is not None:
            y = y + bias.to(wide)
    else:
        shift = None if bias is None else bias.to(wide)
        y = F.layer_norm(total, total.shape[-1:], weight.to(wide), shift, eps)
    y = y.to(x.dtype)
    if not prenorm:
        return y
    return y, x if residual is None and kept == x.dtype else total.to(kept)


def old_layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Normed:
    """``layer_norm_fn`` of mamba_ssm.ops.triton.layernorm; see ``add_and_norm``."""
    return add_and_norm(
        x,
        weight,
        bias,
        residual,
        eps=eps,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )


def old_rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Normed:
    """``rms_norm_fn`` of mamba_ssm.ops.triton.layernorm; see ``add_and_norm``."""
    return old_layer_norm_fn(x, weight, bias, residual, eps, prenorm, residual_in_fp32, True)


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Normed:
    """``layer_norm_fn`` of mamba_ssm.ops.triton.layer_norm; see ``add_and_norm``.

    Raises:
        NotImplementedError: a second input or weight (x1, weight1, bias1), or the mask of dropout is asked for.
    """
    if x1 is not None or weight1 is not None or bias1 is not None:
        refuse("layer_norm_fn with x1, weight1 or bias1", "call it once an input and a weight")
    if return_dropout_mask:
        refuse("layer_norm_fn with return_dropout_mask", "use dropout of torch.nn.functional")
    if rowscale is not None:
        x = x * rowscale[..., None]
    if dropout_p > 0.0:
        x = F.dropout(x, dropout_p)
    return old_layer_norm_fn(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Normed:
    """``rms_norm_fn`` of mamba_ssm.ops.triton.layer_norm; raises as ``layer_norm_fn`` does."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        x1,
        weight1,
        bias1,
        eps,
        dropout_p,
        rowscale,
        prenorm,
        residual_in_fp32,
        True,
        return_dropout_mask,
    )


class RMSNorm(nn.Module):
    """mamba_ssm's ``RMSNorm``: weight (hidden_size,), no bias. One class for both homes."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0.0 else None
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Weights of 1."""
        nn.init.ones_(self.weight)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """x (..., hidden_size) -> as ``rms_norm_fn``."""
        return rms_norm_fn(
            x,
            self.weight,
            None,
            residual=residual,
            eps=self.eps,
            dropout_p=self.drop.p if self.drop is not None and self.training else 0.0,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )
