"""The Mamba-2 block: projection, causal convolution, state space duality, gated norm.

arXiv:2405.21060, section 7.1, figure 6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mamba_export import operators
from mamba_export.contract.operators import LARGEST
from mamba_export.models.inputs import check_sequence, check_state
from mamba_export.models.mamba2_config import Mamba2Config
from mamba_export.models.mixer import LayerState, Mixer, initial_dt_bias
from mamba_export.models.norms import GatedRMSNorm, RMSNorm

_A_RANGE = (1.0, 16.0)
"""-A of a head is uniform there at initialisation, as in the released code (mamba_ssm's A_init_range)."""


class Mamba2(Mixer):
    """One Mamba-2 mixer. ``forward(x, state) -> y, state`` serves prefill and decode alike.

    The step size is limited (``dt_limit_min``, ``dt_limit_max``) at every step, as the definition says.
    mamba_ssm and transformers leave the limits out where they read a single token after others, so with limits
    their logits depend on the parts in which a text is read; ours do not.

    Parameters that act on a channel or head alone (A_log, D, the convolution, the step size's bias, the gated
    norm's weight) stay in fp32 when the model is cast with ``mamba_export.models.cast``.
    """

    def __init__(self, config: Mamba2Config) -> None:
        config = Mamba2Config.of(config)
        # In this order: z, x, B, C, dt.
        super().__init__(config, config.inner + config.conv_channels + config.heads)
        self.config = config
        self.dt_bias = nn.Parameter(initial_dt_bias(config, config.heads))
        self.A_log = nn.Parameter(torch.log(torch.empty(config.heads).uniform_(*_A_RANGE)))
        self.D = nn.Parameter(torch.ones(config.inner if config.skip_per_channel else config.heads))
        self.norm = (
            GatedRMSNorm(
                config.inner, config.n_groups, config.norm_epsilon, config.norm_before_gate
            )
            if config.gated_norm
            else None
        )
        self.out_proj = nn.Linear(config.inner, config.d_model, bias=config.bias)

    def channel_parameters(self) -> list[nn.Parameter]:
        """Parameters that act on a channel or a head alone; the operators take them in fp32."""
        parameters = [self.A_log, self.D, self.dt_bias, self.conv1d.weight, self.conv1d.bias]
        parameters += [] if self.norm is None else [self.norm.weight]
        return [parameter for parameter in parameters if parameter is not None]

    @property
    def _dt_max(self) -> float:
        limit = self.config.dt_limit_max
        return LARGEST if limit is None else limit

    def _skip(self) -> Tensor:
        """D as the operators take it: (heads, 1), or (heads, head_dim)."""
        return self.D.view(self.config.heads, -1)

    @property
    def has_layer_operator(self) -> bool:
        """Whether the layer is of Mamba2Layer's form: no bias of a projection, the norm behind the gate."""
        config = self.config
        return config.gated_norm and not config.norm_before_gate and not config.bias

    def run_layer(
        self, hidden: Tensor, norm: RMSNorm, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        """The layer as one ``mamba2_layer``; see ``Mixer.run_layer``."""
        assert self.norm is not None
        config = self.config
        of_groups = (config.n_groups, config.heads // config.n_groups, config.head_dim)
        hidden, conv, recurrent = torch.ops.mamba_export.mamba2_layer(
            hidden,
            norm.weight.float(),
            self.in_proj.weight.t(),
            *self.conv_parameters(),
            self.dt_bias,
            -torch.exp(self.A_log),
            self._skip(),
            self.norm.weight.view(of_groups),
            self.out_proj.weight.t(),
            state.conv,
            state.recurrent,
            norm.epsilon,
            self.norm.epsilon,
            config.dt_limit_min,
            self._dt_max,
        )
        return hidden, LayerState(conv, recurrent)

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """Mix a sequence, or the next part of one.

        Args:
            x: (batch, length, d_model) in the weights' dtype, length >= 1.
            state: the state that the previous part returned; None at the start. Its recurrent part may be in
                the weights' dtype too, and stays so.

        Returns:
            y (batch, length, d_model) and the state after the last step.

        Raises:
            InputError: x is no floating tensor (batch, length, d_model), or state no LayerState.
            ValueError: length 0, or a state of the wrong shape or dtype.
        """
        config = self.config
        check_sequence(x, config.d_model)
        z, xBC, dt = self.in_proj(x).split(
            [config.inner, config.conv_channels, config.heads], dim=-1
        )
        conv = recurrent = None
        if state is not None:
            check_state(state)
            conv, recurrent = state.conv, state.recurrent
        xBC, conv_state = operators.causal_conv1d(
            xBC, self.conv1d.weight.squeeze(1), self.conv1d.bias, conv
        )
        width = config.n_groups * config.d_state
        u, B, C = xBC.split([config.inner, width, width], dim=-1)
        heads, groups = (config.heads, config.head_dim), (config.n_groups, config.d_state)
        y, recurrent_state = operators.state_space_dual(
            u.unflatten(-1, heads),
            dt,
            -torch.exp(self.A_log),
            B.unflatten(-1, groups),
            C.unflatten(-1, groups),
            self._skip(),
            z.unflatten(-1, heads) if self.norm is None else None,
            dt_bias=self.dt_bias,
            initial_state=recurrent,
            dt_min=config.dt_limit_min,
            dt_max=self._dt_max,
        )
        y = y.flatten(-2)
        if self.norm is not None:
            y = self.norm(y, z)
        return self.out_proj(y), LayerState(conv_state, recurrent_state)
