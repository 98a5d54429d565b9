"""S4D: a diagonal state space layer that is the same at every step (LTI).

Gu, Gupta, Goel and Re 2022, "On the Parameterization and Initialization of Diagonal State Space Models",
arXiv:2206.11893. Of each channel, with states n = 0..N/2-1 and their complex conjugates:

    h_k = exp(dt A) h_{k-1} + u_k,    y_k = 2 Re sum_n C_n B'_n h_{k,n} + D u_k,    B' = (exp(dt A) - 1) / A

which is zero-order hold of B = 1, with B' at the output, where it may be multiplied once. It trains as a
convolution with the kernel K_l = 2 Re sum_n C_n B'_n exp(l dt A_n), and continues a sequence as a recurrence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mamba_export.operators import selective_scan
from mixers.mixer import SequenceMixer, causal_convolution

_TABLE = 64
"""Powers exp(l a) are products of two tables, of l % 64 and of l // 64: few sines, and exact phases."""


def hippo_legs_frequencies(d_state: int) -> Tensor:
    """(d_state // 2,) fp64: the positive imaginary parts of S4D-LegS, eigenvalues of HiPPO-LegS' normal part.

    That part is -1/2 + S with S_nk = -sqrt((2n+1)(2k+1)) / 2 below the diagonal and the negative of it above
    (arXiv:2206.11893, section 4.1), so every real part is -1/2.
    """
    root = torch.sqrt(2 * torch.arange(d_state, dtype=torch.float64) + 1)
    lower = torch.tril(root[:, None] * root[None, :] / 2, diagonal=-1)
    skew = lower.T - lower
    return torch.linalg.eigvalsh(-1j * skew)[-(d_state // 2) :]


class S4D(SequenceMixer):
    """The layer. Its state is (batch, channels, d_state) fp32: real parts, then imaginary parts.

    Args:
        channels: of the sequence; each has its own state matrix.
        d_state: states a channel, conjugates included; even.
        dt_min, dt_max: bounds of the step sizes at initialisation.
    """

    def __init__(
        self, channels: int, d_state: int = 64, dt_min: float = 1e-3, dt_max: float = 1e-1
    ) -> None:
        super().__init__(channels)
        pairs = d_state // 2
        self.d_state = d_state
        spread = torch.rand(channels) * (math.log(dt_max) - math.log(dt_min))
        self.log_dt = nn.Parameter(spread + math.log(dt_min))
        self.log_A_real = nn.Parameter(torch.full((channels, pairs), math.log(0.5)))
        self.A_imag = nn.Parameter(hippo_legs_frequencies(d_state).float().repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(channels, pairs, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(channels))

    def initial_state(self, batch: int) -> Tensor:
        """Zeros."""
        return self.D.new_zeros(batch, self.channels, self.d_state)

    def forward(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See ``SequenceMixer``: a whole sequence is a convolution, a part of one a recurrence."""
        with torch.autocast(u.device.type, enabled=False):
            if state is not None:
                return self._recur(u, state)
            y = causal_convolution(u.float(), self.kernel(u.shape[1]))
            return (y + self.D * u).to(u.dtype), None

    def kernel(self, length: int) -> Tensor:
        """(channels, length): the response to an impulse, without D."""
        C_real, C_imag = self._output()
        last = _tables(length)
        fine_real, fine_imag = self._powers(_range(_TABLE, self.D), 1)  # (64, channels, pairs)
        coarse_real, coarse_imag = self._powers(_range(last, self.D), _TABLE)
        left_real, left_imag = _times(coarse_real, coarse_imag, C_real, C_imag)
        left = torch.cat([left_real, -left_imag], -1).transpose(0, 1)  # (channels, last, 2 pairs)
        right = torch.cat([fine_real, fine_imag], -1).permute(1, 2, 0)  # (channels, 2 pairs, 64)
        return 2 * (left @ right).flatten(1)[:, :length]

    def _recur(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The recurrence as one selective scan, which is real.

        With exp(dt A) = r exp(i w), the turned state g_k = exp(-i w k) h_k decays without turning:
        g_k = r g_{k-1} + exp(-i w k) u_k and y_k = 2 Re(C B' exp(i w k) g_k). So the scan's B and C turn with
        the step, each channel is a group, and k counts from the start of the part.
        """
        batch, length = u.shape[:2]
        cosine, sine = self._turns(length)  # (length, channels, pairs) each
        C_real, C_imag = self._output()
        out_real, out_imag = _times(cosine, sine, C_real, C_imag)
        decay, _ = self._rates()
        B = torch.cat([cosine, -sine], -1).to(u.dtype).expand(batch, -1, -1, -1)
        C = torch.cat([2 * out_real, -2 * out_imag], -1).to(u.dtype).expand(batch, -1, -1, -1)
        y, turned = selective_scan(
            u,
            torch.ones_like(u),
            torch.cat([decay, decay], -1).to(self.D.dtype),
            B.contiguous(),
            C.contiguous(),
            self.D,
            initial_state=state,
            delta_softplus=False,
        )
        real, imag = turned.chunk(2, -1)
        return y, torch.cat(_times(real, imag, cosine[-1], sine[-1]), -1)

    def _rates(self) -> tuple[Tensor, Tensor]:
        """dt A in fp64: its real and its imaginary part, (channels, pairs) each."""
        dt = torch.exp(self.log_dt.double())[:, None]
        return -torch.exp(self.log_A_real.double()) * dt, self.A_imag.double() * dt

    def _output(self) -> tuple[Tensor, Tensor]:
        """C B': its real and its imaginary part, (channels, pairs) each."""
        decay, turn = self._rates()
        size = torch.exp(decay)
        step_real, step_imag = size * torch.cos(turn) - 1, size * torch.sin(turn)
        A_real, A_imag = -torch.exp(self.log_A_real.double()), self.A_imag.double()
        # (exp(dt A) - 1) / A = (exp(dt A) - 1) conj(A) / |A|^2
        real, imag = _times(step_real, step_imag, A_real, -A_imag)
        square = A_real * A_real + A_imag * A_imag
        C = self.C.double()
        found = _times(real / square, imag / square, C[..., 0], C[..., 1])
        return found[0].to(self.D.dtype), found[1].to(self.D.dtype)

    def _powers(self, exponents: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """exp(scale l dt A) for each l in ``exponents``: real and imaginary, (count, channels, pairs) each."""
        decay, turn = self._rates()
        steps = (exponents * scale)[:, None, None]
        size, angle = torch.exp(decay * steps), turn * steps
        dtype = self.D.dtype
        return (size * torch.cos(angle)).to(dtype), (size * torch.sin(angle)).to(dtype)

    def _turns(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin of w k for k = 1..length, (length, channels, pairs) each."""
        _, turn = self._rates()
        last = _tables(length)
        fine = turn * (_range(_TABLE, self.D) + 1)[:, None, None]
        coarse = turn * (_range(last, self.D) * _TABLE)[:, None, None]
        dtype = self.D.dtype
        real, imag = _times(
            torch.cos(coarse).to(dtype)[:, None],
            torch.sin(coarse).to(dtype)[:, None],
            torch.cos(fine).to(dtype),
            torch.sin(fine).to(dtype),
        )
        return real.flatten(0, 1)[:length], imag.flatten(0, 1)[:length]


def _tables(length: int) -> int:
    """How many tables cover a length: two at least, since a size of one is a special case to a tracer."""
    return length // _TABLE + 2


def _range(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device, dtype=torch.float64)


def _times(a_real: Tensor, a_imag: Tensor, b_real: Tensor, b_imag: Tensor) -> tuple[Tensor, Tensor]:
    """The product of two complex numbers, in real ones: files have no complex numbers."""
    return a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real
