"""S6, the selective state space layer alone (arXiv:2312.00752, algorithm 2): no gate, no convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mamba_export.models import MambaConfig
from mamba_export.models.mixer import initial_dt_bias
from mamba_export.operators import selective_scan
from mixers.mixer import SequenceMixer


class S6(SequenceMixer):
    """The layer, with Mamba's parameters and initialisation. Its state is (batch, channels, d_state) fp32.

    Args:
        channels: of the sequence.
        d_state: states a channel.
        rank: of the step size's projection.
    """

    is_time_invariant = False

    def __init__(self, channels: int, d_state: int = 16, rank: int | None = None) -> None:
        super().__init__(channels)
        self.d_state = d_state
        self.rank = rank or math.ceil(channels / 32)
        self.x_proj = nn.Linear(channels, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, channels)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1).repeat(channels, 1)))
        self.D = nn.Parameter(torch.ones(channels))
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)
            self.dt_proj.bias.copy_(initial_dt_bias(MambaConfig(channels, 1), channels))

    def initial_state(self, batch: int) -> Tensor:
        """Zeros."""
        return self.A_log.new_zeros(batch, self.channels, self.d_state)

    def forward(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See ``SequenceMixer``; either form is the scan."""
        dt, B, C = self.x_proj(u).split([self.rank, self.d_state, self.d_state], dim=-1)
        delta = nn.functional.linear(dt, self.dt_proj.weight)  # the scan adds the bias, in fp32
        A = -torch.exp(self.A_log)
        return selective_scan(
            u, delta, A, B, C, self.D, delta_bias=self.dt_proj.bias, initial_state=state
        )
