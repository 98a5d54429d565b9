"""mamba_ssm.modules.mamba2.Mamba2, with its keywords and parameter names, so that its checkpoints load."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mamba_export.adapters.gated_norms import RMSNorm
from mamba_export.adapters.head_mixer import HeadMixer
from mamba_export.adapters.layer_cache import states_of
from mamba_export.adapters.unsupported import PACKED, refuse


class Mamba2(HeadMixer):
    """One Mamba-2 mixer (arXiv:2405.21060, section 7.1). ``forward`` maps (batch, length, d_model) to itself.

    Args:
        d_model, d_state, d_conv, conv_init, expand, headdim, ngroups, A_init_range, D_has_hdim, dt_min,
            dt_max, dt_init_floor, dt_limit, bias, conv_bias, chunk_size: as in ``HeadMixer``.
        d_ssm: channels that are scanned; the others are a gated MLP's. None for all.
        rmsnorm: gated norm behind the scan, a group's channels alone; else a gate without a norm.
        norm_before_gate: RMSNorm(y) * silu(z), else RMSNorm(y * silu(z)).
        use_mem_eff_path: means nothing here; both paths of mamba_ssm compute the same.
        layer_idx: key of this layer's states in ``inference_params``.
        process_group: None; sequence_parallel means nothing without one.

    Raises:
        NotImplementedError: process_group is given.
        ValueError: sizes that do not divide each other, or a chunk_size below 1.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if process_group is not None:
            refuse("Mamba2 with process_group", "a model is exported from one process")
        d_inner = int(expand * d_model)
        super().__init__(
            d_model, d_state, d_conv, conv_init, d_inner, d_inner if d_ssm is None else d_ssm, headdim,
            ngroups, A_init_range, D_has_hdim, dt_min, dt_max, dt_init_floor, dt_limit, bias, conv_bias,
            chunk_size, device, dtype,
        )  # fmt: skip
        self.expand, self.rmsnorm, self.norm_before_gate = expand, rmsnorm, norm_before_gate
        self.use_mem_eff_path, self.layer_idx = use_mem_eff_path, layer_idx
        self.process_group, self.sequence_parallel = None, sequence_parallel
        self.world_size, self.local_rank = 1, 0
        self.activation = "silu"
        if rmsnorm:
            self.norm = RMSNorm(
                self.d_ssm,
                eps=1e-5,
                group_size=self.d_ssm // ngroups,
                norm_before_gate=norm_before_gate,
                device=device,
                dtype=dtype,
            )

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """u (batch, length, d_model), or (batch * seqlen, d_model) with ``seqlen`` -> the same shape.

        Args:
            inference_params: mamba_ssm's states of a generation, by ``layer_idx``.

        Raises:
            NotImplementedError: seq_idx or cu_seqlens is given.
        """
        for name, packed in (("seq_idx", seq_idx), ("cu_seqlens", cu_seqlens)):
            if packed is not None:
                refuse(f"Mamba2 with {name}", PACKED)
        hidden = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        if inference_params is None:
            y, _ = self._mixed(self.in_proj(hidden), self._norm, self.activation)
        else:
            conv_state, ssm_state = self._get_states_from_cache(inference_params, hidden.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(u, conv_state, ssm_state)[0]
            conv_state.zero_()
            ssm_state.zero_()
            y = self._continued(self.in_proj(hidden), conv_state, ssm_state)
        out = self.out_proj(y)
        return out if seqlen is None else out.flatten(0, 1)

    @property
    def _norm(self) -> RMSNorm | None:
        return self.norm if self.rmsnorm else None

    def _continued(self, zxbcdt: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        """The mixer from given states, which are brought up to date in place."""
        past = conv_state[..., 1:]
        y, last_state = self._mixed(zxbcdt, self._norm, self.activation, past, ssm_state)
        xBC = zxbcdt[..., -self.conv_dim - self.nheads : -self.nheads].transpose(1, 2)
        inputs = torch.cat([conv_state, xBC.to(conv_state.dtype)], dim=-1)
        conv_state.copy_(inputs[..., -self.d_conv :])
        ssm_state.copy_(last_state)
        return y

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token: hidden_states (batch, 1, d_model); both states are changed in place and returned.

        ``dt_limit`` holds here as in ``forward``, so that steps are what the whole sequence is; mamba_ssm's own
        step knows no limits.

        Args:
            conv_state: (batch, conv_dim, d_conv), the convolution's last inputs.
            ssm_state: (batch, heads, headdim, d_state), the scan's state.
        """
        if hidden_states.shape[1] != 1:
            raise ValueError(f"Mamba2.step takes one token a call, got {hidden_states.shape[1]}")
        y = self._continued(self.in_proj(hidden_states), conv_state, ssm_state)
        return self.out_proj(y), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states of ``step``; ``max_seqlen`` means nothing, for the states do not grow."""
        conv, projection = self.conv1d.weight, self.in_proj.weight
        shape = (batch_size, self.nheads, self.headdim, self.d_state)
        return (
            conv.new_zeros((batch_size, self.conv_dim, self.d_conv), dtype=dtype or conv.dtype),
            projection.new_zeros(shape, dtype=dtype or projection.dtype),
        )

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        return states_of(self, inference_params, batch_size, initialize_states)
