"""mamba_ssm's ``Block``: add, norm, mixer; in its two homes, whose arguments differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mamba_export.adapters.norms import RMSNorm, add_and_norm


class OldBlock(nn.Module):
    """``mamba_ssm.modules.mamba_simple.Block``: a mixer, and no MLP.

    Args:
        dim: d_model.
        mixer_cls, norm_cls: called with ``dim``.
        fused_add_norm: the residual is added in fp32 and the norm reads that sum before it is rounded.
        residual_in_fp32: keep the residual in fp32.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.norm = norm_cls(dim)
        self.mixer = mixer_cls(dim)
        if fused_add_norm and not isinstance(self.norm, (nn.LayerNorm, RMSNorm)):
            raise TypeError(
                f"fused_add_norm needs LayerNorm or RMSNorm, got {type(self.norm).__name__}"
            )

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states, residual (batch, length, dim) -> the mixer's output, and the new residual."""
        normed, residual = self._add_norm(self.norm, hidden_states, residual)
        return self.mixer(normed, inference_params=inference_params, **mixer_kwargs), residual

    def _add_norm(
        self, norm: Any, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.fused_add_norm:
            normed, total = add_and_norm(
                hidden_states,
                norm.weight,
                norm.bias,
                residual,
                eps=norm.eps,
                prenorm=True,
                residual_in_fp32=self.residual_in_fp32,
                is_rms_norm=isinstance(norm, RMSNorm),
            )
            return normed, total
        total = hidden_states if residual is None else hidden_states + residual
        normed = norm(total.to(norm.weight.dtype))
        return normed, total.to(torch.float32) if self.residual_in_fp32 else total

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """The mixer's states."""
        mixer: Any = self.mixer
        return mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)


class Block(OldBlock):
    """``mamba_ssm.modules.block.Block``: a mixer, and an MLP unless ``mlp_cls`` is ``nn.Identity``."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        mlp_cls: Callable[[int], nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__(dim, mixer_cls, norm_cls, fused_add_norm, residual_in_fp32)
        self.mlp: nn.Module | None = None
        if mlp_cls is not nn.Identity:
            self.norm2 = norm_cls(dim)
            self.mlp = mlp_cls(dim)

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states, residual (batch, length, dim) -> the last part's output, and the new residual."""
        hidden_states, residual = super().forward(
            hidden_states, residual, inference_params, **mixer_kwargs
        )
        if self.mlp is not None:
            normed, residual = self._add_norm(self.norm2, hidden_states, residual)
            hidden_states = self.mlp(normed)
        return hidden_states, residual
