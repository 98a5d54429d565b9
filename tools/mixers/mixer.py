"""What a mixer is: it lets the steps of a sequence see those before them, each channel's or all together."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SequenceMixer(nn.Module):
    """The inner layer of a block: ``forward(u, state) -> y, state``.

    Args:
        channels: of u and y.

    Attributes:
        grows: axis along which the state grows with what was read; None for a state of fixed size.
        is_time_invariant: it does the same at every step (LTI), and so is a convolution too.
    """

    grows: int | None = None
    is_time_invariant: bool = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def initial_state(self, batch: int) -> Tensor:
        """What a sequence that is read in parts starts from."""
        raise NotImplementedError

    def forward(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Mix a whole sequence, or the next part of one.

        Args:
            u: (batch, length, channels).
            state: what the part before returned, at the start ``initial_state``; None for a whole sequence,
                which is then computed in the form that trains fastest.

        Returns:
            y of u's shape, and the state after the last step (None where a whole sequence leaves none).
        """
        raise NotImplementedError


def causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y_t = sum_s kernel_s u_{t-s} by Fourier transforms, zero-padded so that nothing wraps round.

    Args:
        u: (batch, length, channels).
        kernel: (channels, length) in u's dtype.
    """
    length, size = u.shape[1], 2 * u.shape[1]
    if torch.compiler.is_exporting():
        # Both halves of the spectra: ONNX's DFT has no inverse from one of them.
        spectrum = torch.fft.fft(u.transpose(1, 2), n=size) * torch.fft.fft(kernel, n=size)
        return torch.view_as_real(torch.fft.ifft(spectrum))[..., :length, 0].transpose(1, 2)
    spectrum = torch.fft.rfft(u.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :length].transpose(1, 2)
