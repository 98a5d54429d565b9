"""What mamba_ssm's Mamba-2 mixers have in common: sizes, parameters and how they start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mamba_export.adapters.initialisation import step_bias, without_decay
from mamba_export.adapters.split_projection import GatedNorm, mix
from mamba_export.adapters.state_space import check_chunk_size
from mamba_export.operators.dtypes import accumulation_dtype


class HeadMixer(nn.Module):
    """Projection to z, x, B, C and dt, convolution over x, B and C, scan of heads, projection back.

    Args:
        d_model, d_state, d_conv, headdim, ngroups, bias, conv_bias: sizes and biases, as in mamba_ssm.
        d_inner: width behind the first projection; of it ``d_ssm`` is scanned, the rest is a gated MLP.
        conv_init: start of the convolution is uniform in [-conv_init, conv_init]; None for PyTorch's own.
        A_init_range: -A starts uniform in it; D_has_hdim: D is (d_ssm,), else (heads,).
        dt_min, dt_max, dt_init_floor: initialisation of the step size; dt_limit its limits.
        chunk_size: decides nothing here; at least 1.

    Raises:
        ValueError: sizes that do not divide each other, or a chunk_size below 1; the message names them.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int,
        d_conv: int,
        conv_init: float | None,
        d_inner: int,
        d_ssm: int,
        headdim: int,
        ngroups: int,
        A_init_range: tuple[float, float],
        D_has_hdim: bool,
        dt_min: float,
        dt_max: float,
        dt_init_floor: float,
        dt_limit: tuple[float, float],
        bias: bool,
        conv_bias: bool,
        chunk_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_chunk_size(name, chunk_size)
        if headdim < 1 or d_ssm % headdim:
            raise ValueError(f"{name}: headdim {headdim} does not divide the width {d_ssm}")
        heads = d_ssm // headdim
        if ngroups < 1 or heads % ngroups:
            raise ValueError(f"{name}: ngroups {ngroups} does not divide the {heads} heads")
        self.d_model, self.d_state, self.d_conv, self.conv_init = (
            d_model,
            d_state,
            d_conv,
            conv_init,
        )
        self.d_inner, self.d_ssm, self.headdim, self.ngroups = d_inner, d_ssm, headdim, ngroups
        self.nheads, self.D_has_hdim, self.chunk_size = heads, D_has_hdim, chunk_size
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        self.conv_dim = d_ssm + 2 * ngroups * d_state
        d_in_proj = 2 * d_inner - d_ssm + self.conv_dim + heads
        self.in_proj = nn.Linear(d_model, d_in_proj, bias=bias, **factory)
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, d_conv,
            groups=self.conv_dim, padding=d_conv - 1, bias=conv_bias, **factory,
        )  # fmt: skip
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.act = nn.SiLU()  # means nothing here; subclasses call it
        start = step_bias(torch.empty(heads, **factory), dt_min, dt_max, dt_init_floor)
        self.dt_bias = without_decay(nn.Parameter(start))
        A = torch.empty(heads, dtype=torch.float32, device=device).uniform_(*A_init_range)
        self.A_log = without_decay(nn.Parameter(torch.log(A).to(dtype=dtype)))
        ones = torch.ones(d_ssm if D_has_hdim else heads, device=device)
        self.D = without_decay(nn.Parameter(ones))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias, **factory)

    def _mixed(
        self,
        zxbcdt: Tensor,
        norm: GatedNorm | None,
        activation: str | None,
        conv_state: Tensor | None = None,
        initial_states: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """zxbcdt (batch, length, ...) -> (batch, length, d_inner) for ``out_proj``, and the last state."""
        return mix(
            zxbcdt,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.dt_bias,
            -torch.exp(self.A_log.to(accumulation_dtype(self.A_log.dtype))),
            self.D.unflatten(0, (-1, self.headdim)) if self.D_has_hdim else self.D,
            norm,
            headdim=self.headdim,
            ngroups=self.ngroups,
            activation=activation,
            dt_limit=self.dt_limit,
            conv_state=conv_state,
            initial_states=initial_states,
            keep_state_dtype=True,
        )
