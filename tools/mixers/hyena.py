"""Hyena's long convolution (Poli et al. 2023, arXiv:2302.10866): a filter that a small network writes.

The filter is h_l = window_l * MLP(features of l), the same at every step; the gates of Hyena's order 2 are
those of the block around it (``blocks.H3Block``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mamba_export.errors import MambaExportError
from mixers.mixer import SequenceMixer, causal_convolution


class Sine(nn.Module):
    """sin(w x) with a learnt frequency a channel, which the filter's network has as its activation."""

    def __init__(self, width: int, frequency: float) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.full((width,), frequency))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x)


class HyenaFilter(SequenceMixer):
    """The convolution. Its state is all of the inputs so far, (batch, past, channels): it has no smaller one.

    Args:
        channels: of the sequence; each has its own filter.
        longest: the longest sequence: positions are fractions of it.
        width: of the filter's network.
        bands: frequencies of the positional features, beside the position itself.
    """

    grows = 1
    rates: Tensor
    positions: Tensor

    def __init__(self, channels: int, longest: int = 4096, width: int = 64, bands: int = 8) -> None:
        super().__init__(channels)
        self.longest, self.bands = longest, bands
        self.network = nn.Sequential(
            nn.Linear(1 + 2 * bands, width),
            Sine(width, 10.0),
            nn.Linear(width, width),
            Sine(width, 10.0),
            nn.Linear(width, channels, bias=False),
        )
        # The window decays to a hundredth after 0.3 of the longest sequence in the first channel, and after
        # 1.5 in the last.
        rates = torch.linspace(math.log(100) / 0.3, math.log(100) / 1.5, channels)
        self.register_buffer("rates", rates, persistent=False)
        positions = torch.arange(longest, dtype=torch.float32) / longest
        self.register_buffer("positions", positions, persistent=False)
        self.D = nn.Parameter(torch.randn(channels))

    def initial_state(self, batch: int) -> Tensor:
        """No inputs."""
        return self.D.new_zeros(batch, 0, self.channels)

    def forward(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See ``SequenceMixer``. MambaExportError for a sequence that is longer than the positions reach."""
        with torch.autocast(u.device.type, enabled=False):
            read = u.float() if state is None else torch.cat([state, u.float()], 1)
            y = causal_convolution(read, self.kernel(read.shape[1])) + self.D * read
            length = u.shape[1]
            y = y if state is None else y[:, read.shape[1] - length :]
            return y.to(u.dtype), None if state is None else read

    def kernel(self, length: int) -> Tensor:
        """(channels, length): the filter."""
        if not torch.compiler.is_exporting() and length > self.longest:
            raise MambaExportError(
                f"the sequence has {length} tokens, and this Hyena's positions end at {self.longest}: "
                "make it with a larger `longest`"
            )
        # Looked up, so that a file refuses a place beyond the last too.
        places = torch.arange(length, device=self.D.device)
        t = self.positions.index_select(0, places)[:, None].to(self.D.dtype)
        angles = 2 * math.pi * t * torch.linspace(1, self.bands, self.bands, device=t.device)
        features = torch.cat([t, torch.cos(angles), torch.sin(angles)], -1)
        return (self.network(features) * torch.exp(-self.rates * t)).T
