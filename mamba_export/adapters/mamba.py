"""mamba_ssm.modules.mamba_simple.Mamba, with the keywords and parameter names of its forks.

Vim, Audio Mamba and LocalMamba add a backward direction (``bimamba_type`` v1, v2), VideoMamba calls it
``bimamba``, SegMamba and Vivim add a third one over interleaved slices or frames (v3). Their checkpoints load:
a direction's parameters carry its suffix, as those forks save them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export.adapters.convolution import causal_conv1d_update, convolve
from mamba_export.adapters.initialisation import step_bias, without_decay
from mamba_export.adapters.inner import mamba_inner_fn_no_out_proj
from mamba_export.adapters.layer_cache import states_of
from mamba_export.adapters.scan import scan
from mamba_export.adapters.state_update import selective_state_update
from mamba_export.adapters.unsupported import refuse

DIRECTIONS = {"none": ("",), "v1": ("",), "v2": ("", "_b"), "v3": ("", "_b", "_s")}
"""Suffixes of the parameter sets by ``bimamba_type``: forwards, backwards, over slices. v1 has A_b_log too."""


class Mamba(nn.Module):
    """One Mamba mixer (arXiv:2312.00752, section 3.4). ``forward`` maps (batch, length, d_model) to itself.

    Args:
        d_model, d_state, d_conv, expand, dt_rank, bias, conv_bias: sizes and biases, as in mamba_ssm.
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: initialisation of the step size (section 3.6).
        use_fast_path: means nothing here; both paths of mamba_ssm compute the same.
        layer_idx: key of this layer's states in ``inference_params``.
        bimamba_type: "none", "v1", "v2" (Vim), "v3" (SegMamba, Vivim).
        bimamba: VideoMamba's name for "v2".
        if_divide_out, if_devide_out: halve the sum of the two directions of v2.
        init_layer_scale: start of a learned scale of the output, ``gamma``; None for none.
        nslices: of v3 (SegMamba); the directions are added.
        nframes: of v3 (Vivim); their mean is taken.

    Raises:
        NotImplementedError: another ``bimamba_type`` or ``dt_init``.
    """

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: nn.Parameter
    A_b_log: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: str = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        *,
        if_devide_out: bool = False,
        bimamba: bool = False,
        nslices: int | None = None,
        nframes: int | None = None,
    ) -> None:
        super().__init__()
        if bimamba_type not in DIRECTIONS:
            refuse(
                f"Mamba with bimamba_type={bimamba_type!r}", f"it is one of {', '.join(DIRECTIONS)}"
            )
        if dt_init not in ("random", "constant"):
            refuse(f"Mamba with dt_init={dt_init!r}", 'it is "random" or "constant"')
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.activation = "silu"
        self.bimamba_type = "v2" if bimamba and bimamba_type == "none" else bimamba_type
        self.slices = nframes or nslices or 5  # the default of both forks
        self.divisor = 1
        if self.bimamba_type == "v2" and (if_divide_out or if_devide_out):
            self.divisor = 2
        elif self.bimamba_type == "v3" and nframes is not None:
            self.divisor = 3
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **factory)
        for suffix in DIRECTIONS[self.bimamba_type]:
            self._add_direction(suffix, conv_bias, factory)
        if self.bimamba_type == "v1":
            self.A_b_log = self._states_log(device)
        self._initialise_dt(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)
        self.gamma = None
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model, device=device))

    def _add_direction(self, suffix: str, conv_bias: bool, factory: dict[str, Any]) -> None:
        inner, rank = self.d_inner, self.dt_rank
        conv = nn.Conv1d(
            inner,
            inner,
            self.d_conv,
            groups=inner,
            padding=self.d_conv - 1,
            bias=conv_bias,
            **factory,
        )
        self.add_module(f"conv1d{suffix}", conv)
        x_proj = nn.Linear(inner, rank + 2 * self.d_state, bias=False, **factory)
        self.add_module(f"x_proj{suffix}", x_proj)
        self.add_module(f"dt_proj{suffix}", nn.Linear(rank, inner, bias=True, **factory))
        self.register_parameter(f"A{suffix}_log", self._states_log(factory["device"]))
        skip = nn.Parameter(torch.ones(inner, device=factory["device"]))
        self.register_parameter(f"D{suffix}", without_decay(skip))

    def _states_log(self, device: Any) -> nn.Parameter:
        """log(-A), A_n = -(n + 1) (S4D-Real, section 3.6); fp32 whatever the other parameters are."""
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device)
        return without_decay(nn.Parameter(torch.log(states).repeat(self.d_inner, 1)))

    @torch.no_grad()
    def _initialise_dt(
        self, low: float, high: float, kind: str, scale: float, floor: float
    ) -> None:
        """softplus(dt_proj.bias) is log-uniform in [dt_min, dt_max] (section 3.6)."""
        bound = self.dt_rank**-0.5 * scale
        for suffix in DIRECTIONS[self.bimamba_type]:
            projection = getattr(self, f"dt_proj{suffix}")
            if kind == "constant":
                nn.init.constant_(projection.weight, bound)
            else:
                nn.init.uniform_(projection.weight, -bound, bound)
            projection.bias.copy_(step_bias(projection.bias, low, high, floor))
            projection.bias._no_reinit = True  # what mixer_seq_simple looks for

    def forward(self, hidden_states: Tensor, inference_params: Any = None, T: int = 1) -> Tensor:
        """hidden_states (batch, length, d_model) -> the same shape.

        Args:
            inference_params: mamba_ssm's states of a generation, by ``layer_idx``; forwards alone.
            T: VideoMamba's number of frames; means nothing, there as here.
        """
        if inference_params is not None:
            return self._continue(hidden_states, inference_params)
        xz = self.in_proj(hidden_states).transpose(1, 2)
        y = self._direction("", xz)
        if "_b" in DIRECTIONS[self.bimamba_type]:
            y = y + self._direction("_b", xz, reverse=True)
        if "_s" in DIRECTIONS[self.bimamba_type]:
            y = y + self._over_slices(xz)
        if self.divisor > 1:
            y = y / self.divisor
        return self._output(y)

    def _output(self, y: Tensor) -> Tensor:
        out = self.out_proj(y.transpose(1, 2))
        return out if self.gamma is None else out * self.gamma

    def _direction(self, suffix: str, xz: Tensor, *, reverse: bool = False) -> Tensor:
        """xz (batch, 2 * d_inner, length) -> y (batch, d_inner, length), with a direction's parameters."""
        conv, dt_proj = getattr(self, f"conv1d{suffix}"), getattr(self, f"dt_proj{suffix}")
        return mamba_inner_fn_no_out_proj(
            xz,
            conv.weight,
            conv.bias,
            getattr(self, f"x_proj{suffix}").weight,
            dt_proj.weight,
            -torch.exp(getattr(self, f"A{suffix}_log").float()),
            D=getattr(self, f"D{suffix}").float(),
            delta_bias=dt_proj.bias.float(),
            reverse=reverse,
            A_b=-torch.exp(self.A_b_log.float()) if self.bimamba_type == "v1" else None,
        )

    def _over_slices(self, xz: Tensor) -> Tensor:
        """The third direction of v3: step i of every slice, then step i + 1 of every slice."""
        woven = xz.unflatten(-1, (self.slices, -1)).transpose(-1, -2).flatten(-2)
        y = self._direction("_s", woven)
        return y.unflatten(-1, (-1, self.slices)).transpose(-1, -2).flatten(-2)

    def _continue(self, hidden_states: Tensor, inference_params: Any) -> Tensor:
        """A prompt, or one step after it, with the states of ``inference_params`` brought up to date."""
        if self.bimamba_type != "none":
            refuse(f"a state for bimamba_type={self.bimamba_type!r}", "it reads the whole sequence")
        conv_state, recurrent_state = self._get_states_from_cache(
            inference_params, hidden_states.shape[0]
        )
        if inference_params.seqlen_offset > 0:
            return self.step(hidden_states, conv_state, recurrent_state)[0]
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
        conv_state.copy_(F.pad(x, (self.d_conv - x.shape[-1], 0)))
        conv = self.conv1d
        x, _ = convolve(x, conv.weight.squeeze(1), conv.bias, None, silu=True)
        dt, B, C = self._projected(x.transpose(1, 2))
        y, last_state = scan(
            x,
            dt.transpose(1, 2),
            -torch.exp(self.A_log.float()),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D.float(),
            z,
            self.dt_proj.bias.float(),
            delta_softplus=True,
        )
        recurrent_state.copy_(last_state)
        return self._output(y)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., d_inner) -> dt (..., d_inner) without its bias, B and C (..., d_state)."""
        sizes = [self.dt_rank, self.d_state, self.d_state]
        dt, B, C = torch.split(self.x_proj(x), sizes, dim=-1)
        return F.linear(dt, self.dt_proj.weight), B, C

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token: hidden_states (batch, 1, d_model); both states are changed in place and returned.

        Args:
            conv_state: (batch, d_inner, d_conv), the convolution's last inputs.
            ssm_state: (batch, d_inner, d_state), the scan's state.
        """
        if hidden_states.shape[1] != 1:
            raise ValueError(f"Mamba.step takes one token a call, got {hidden_states.shape[1]}")
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)
        x = causal_conv1d_update(
            x, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, self.activation
        )
        dt, B, C = self._projected(x)
        A = -torch.exp(self.A_log.float())
        y = selective_state_update(
            ssm_state, x, dt, A, B, C, self.D, z, self.dt_proj.bias, dt_softplus=True
        )
        return self._output(y.unsqueeze(-1)), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states of ``step``; ``max_seqlen`` means nothing, for the states do not grow."""
        weight = self.conv1d.weight
        shape = (batch_size, self.d_inner)
        conv_state = weight.new_zeros((*shape, self.d_conv), dtype=dtype or weight.dtype)
        bias = self.dt_proj.bias
        return conv_state, bias.new_zeros((*shape, self.d_state), dtype=dtype or bias.dtype)

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        return states_of(self, inference_params, batch_size, initialize_states)
