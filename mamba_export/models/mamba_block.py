"""The Mamba block: projections, causal convolution, selective scan, gate.

arXiv:2312.00752, section 3.4, figure 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mamba_export import operators
from mamba_export.models.inputs import check_sequence, check_state
from mamba_export.models.mamba_config import MambaConfig
from mamba_export.models.mixer import LayerState, Mixer, initial_dt_bias
from mamba_export.models.norms import RMSNorm, rms


class Mamba(Mixer):
    """One Mamba mixer. ``forward(x, state) -> y, state`` serves prefill and decode alike.

    Parameters that act on a channel alone (A_log, D, the convolution, the step size's bias) stay in fp32
    when the model is cast with ``mamba_export.models.cast``: the operators take them so.
    """

    def __init__(self, config: MambaConfig) -> None:
        config = MambaConfig.of(config)
        d_inner, d_state, rank = config.inner, config.d_state, config.rank
        super().__init__(config, 2 * d_inner)
        self.config = config
        self.x_proj = nn.Linear(d_inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, d_inner, bias=True)
        # S4D-Real initialisation: A_n = -(n + 1) (section 3.6).
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1).repeat(d_inner, 1)))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=config.bias)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(rank**-0.5), rank**-0.5)
            self.dt_proj.bias.copy_(initial_dt_bias(config, d_inner))

    def channel_parameters(self) -> list[nn.Parameter]:
        """Parameters that act on a channel alone; the operators take them in fp32."""
        parameters = [self.A_log, self.D, self.conv1d.weight, self.conv1d.bias, self.dt_proj.bias]
        return [parameter for parameter in parameters if parameter is not None]

    @property
    def has_layer_operator(self) -> bool:
        """Whether the layer is of MambaLayer's form.

        It has no bias of a projection, no norms of dt, B and C, and no exact zero-order hold.
        """
        config = self.config
        return not config.bias and config.bcdt_norm_epsilon is None and not config.exact_zoh

    def run_layer(
        self, hidden: Tensor, norm: RMSNorm, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        """The layer as one ``mamba_layer``; see ``Mixer.run_layer``."""
        hidden, conv, recurrent = torch.ops.mamba_export.mamba_layer(
            hidden,
            norm.weight.float(),
            self.in_proj.weight.t(),
            *self.conv_parameters(),
            self.x_proj.weight.t(),
            self.dt_proj.weight.t(),
            self.dt_proj.bias,
            -torch.exp(self.A_log),
            self.D,
            self.out_proj.weight.t(),
            state.conv,
            state.recurrent,
            norm.epsilon,
        )
        return hidden, LayerState(conv, recurrent)

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """Mix a sequence, or the next part of one.

        Args:
            x: (batch, length, d_model) in the weights' dtype, length >= 1.
            state: the state that the previous part returned; None at the start.

        Returns:
            y (batch, length, d_model) and the state after the last step.

        Raises:
            InputError: x is no floating tensor (batch, length, d_model), or state no LayerState.
            ValueError: length 0, or a state of the wrong shape or dtype.
        """
        config = self.config
        check_sequence(x, config.d_model)
        u, z = self.in_proj(x).chunk(2, dim=-1)  # (batch, length, d_inner) each
        conv = recurrent = None
        if state is not None:
            check_state(state)
            conv, recurrent = state.conv, state.recurrent
        u, conv_state = operators.causal_conv1d(
            u, self.conv1d.weight.squeeze(1), self.conv1d.bias, conv
        )
        dt, B, C = self.x_proj(u).split([config.rank, config.d_state, config.d_state], dim=-1)
        if config.bcdt_norm_epsilon is not None:
            dt, B, C = (rms(t, config.bcdt_norm_epsilon).to(u.dtype) for t in (dt, B, C))
        delta = nn.functional.linear(
            dt, self.dt_proj.weight
        )  # the bias is added in the scan, in fp32
        A = -torch.exp(self.A_log)
        y, recurrent_state = operators.selective_scan(
            u, delta, A, B, C, self.D, z, self.dt_proj.bias, recurrent, exact_zoh=config.exact_zoh
        )
        return self.out_proj(y), LayerState(conv_state, recurrent_state)
