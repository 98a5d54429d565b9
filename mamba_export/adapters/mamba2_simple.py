"""mamba_ssm.modules.mamba2_simple.Mamba2Simple, with its keywords and parameter names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mamba_export.adapters.gated_norms import RMSNorm
from mamba_export.adapters.head_mixer import HeadMixer
from mamba_export.adapters.initialisation import without_decay
from mamba_export.adapters.split_projection import GatedNorm, group_norm
from mamba_export.adapters.unsupported import PACKED, refuse


class Mamba2Simple(HeadMixer):
    """One Mamba-2 mixer without states of a generation. ``forward`` maps (batch, length, d_model) to itself.

    Args:
        d_model, d_state, d_conv, conv_init, expand, headdim, ngroups, A_init_range, dt_min, dt_max,
            dt_init_floor, dt_limit, bias, conv_bias, chunk_size: as in ``HeadMixer``.
        learnable_init_states: the scan starts from the parameter ``init_states`` (heads, headdim, d_state).
        activation: of the convolution: None, "silu" or "swish".
        use_mem_eff_path: the norm is a group's alone; else it is of the whole width, as in mamba_ssm, whose
            two paths differ so where there are several groups.
        layer_idx: means nothing, as in mamba_ssm.

    Raises:
        ValueError: sizes that do not divide each other, or a chunk_size below 1.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 128,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        learnable_init_states: bool = False,
        activation: str | None = "swish",
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        d_inner = int(expand * d_model)
        super().__init__(
            d_model, d_state, d_conv, conv_init, d_inner, d_inner, headdim, ngroups, A_init_range, False,
            dt_min, dt_max, dt_init_floor, dt_limit, bias, conv_bias, chunk_size, device, dtype,
        )  # fmt: skip
        self.expand, self.activation = expand, activation
        self.use_mem_eff_path, self.layer_idx = use_mem_eff_path, layer_idx
        self.learnable_init_states = learnable_init_states
        if learnable_init_states:
            shape = (self.nheads, headdim, d_state)
            self.init_states = without_decay(
                nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
            )
        self.norm = RMSNorm(d_inner, eps=1e-5, norm_before_gate=False, device=device, dtype=dtype)

    def forward(self, u: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """u (batch, length, d_model) -> the same shape. NotImplementedError where seq_idx is given."""
        if seq_idx is not None:
            refuse("Mamba2Simple with seq_idx", PACKED)
        norm: GatedNorm | None = self.norm
        if self.use_mem_eff_path:
            norm = group_norm(self.norm.weight, self.norm.eps, self.ngroups, False)
        start = None
        if self.learnable_init_states:
            start = self.init_states.expand(u.shape[0], *self.init_states.shape)
        y, _ = self._mixed(self.in_proj(u), norm, self.activation, initial_states=start)
        return self.out_proj(y)
