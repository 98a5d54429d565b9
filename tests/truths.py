"""What native kernels are compared with: the scan in float64 without a loop over steps, and poisoned memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def _steps(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor, softplus: bool
) -> tuple[Tensor, Tensor]:
    """Logarithm of the decay and the input of each step, (batch, length, d_inner, d_state)."""
    dt = delta + delta_bias
    dt = F.softplus(dt, threshold=40) if softplus else dt
    return dt[..., None] * A, (dt * u)[..., None] * _per_channel(B, u.shape[2])


def _per_channel(B: Tensor, d_inner: int) -> Tensor:
    return B.repeat_interleave(d_inner // B.shape[2], dim=2)


def scan_truth(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    initial_state: Tensor,
    softplus: bool = True,
    reverse: bool = False,
    exact_zoh: bool = False,
) -> tuple[Tensor, Tensor]:
    """The scan in float64 by doubling: after pass k, each step holds what its last 2^k steps add up to.

    Hillis and Steele 1986, "Data parallel algorithms". Exact and quick on a GPU, where the reference's
    loop takes 0.1 ms a step; memory is length x d_state. Arguments and results as in the reference.
    """
    sequences = [None if t is None else t.double() for t in (u, delta, B, C, z)]
    if reverse:
        sequences = [None if t is None else t.flip(1) for t in sequences]
    u, delta, B, C, z = sequences
    A, D, delta_bias = A.double(), D.double(), delta_bias.double()
    log_decay, h = _steps(u, delta, A, B, delta_bias, softplus)
    if exact_zoh:
        h = torch.expm1(log_decay) / A * u[..., None] * _per_channel(B, u.shape[2])
    decay = log_decay.exp_()
    h[:, 0] += decay[:, 0] * initial_state.double()
    reach, length = 1, u.shape[1]
    while reach < length:
        h[:, reach:] = h[:, reach:] + decay[:, reach:] * h[:, :-reach]
        decay[:, reach:] = decay[:, reach:] * decay[:, :-reach]
        reach *= 2
    y = (h * _per_channel(C, u.shape[2])).sum(-1) + D * u
    if z is not None:
        y = y * F.silu(z)
    return (y.flip(1) if reverse else y), h[:, -1].clone()


def last_state_truth(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    delta_bias: Tensor,
    initial_state: Tensor,
    chunk: int = 1000,
) -> Tensor:
    """The last state alone, in float64, of a sequence of any length: ``chunk`` steps in one sum.

    ``h_T = exp(S_T) h_0 + sum_t exp(S_T - S_t) x_t`` where S is the running sum of the decays'
    logarithms, so that no exponent is above 0. Softplus is applied.
    """
    h, A, delta_bias = initial_state.double(), A.double(), delta_bias.double()
    for start in range(0, u.shape[1], chunk):
        cut = slice(start, start + chunk)
        log_decay, x = _steps(
            u[:, cut].double(), delta[:, cut].double(), A, B[:, cut].double(), delta_bias, True
        )
        S = log_decay.cumsum(1)
        h = S[:, -1].exp() * h + ((S[:, -1:] - S).exp_() * x).sum(1)
    return h


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill what ``torch.empty`` gives with NaN (bytes with 255): what a kernel does not write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fill_uninitialized_memory, on by default, needs it
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def dual_truth(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    log_decay: Tensor | None,
    dt_bias: Tensor,
    initial_state: Tensor,
    softplus: bool = True,
    dt_min: float = 0.0,
    dt_max: float = float("inf"),
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """State space duality in float64 by its other form: ``Y = (L * C B^T) (dt X)`` over the whole length.

    arXiv:2405.21060, section 3.2, equation 16. L_ij is the product of the decays of the steps behind j, up to
    i. Arguments and results as in the reference; memory is length squared.
    """
    sequences = [None if t is None else t.double() for t in (x, dt, B, C, z, log_decay)]
    if reverse:
        sequences = [None if t is None else t.flip(1) for t in sequences]
    x, dt, B, C, z, log_decay = sequences
    dt = dt + dt_bias.double()
    dt = F.softplus(dt, threshold=40) if softplus else dt
    dt = dt.clamp(dt_min, dt_max)
    decay = torch.exp(
        dt * A.double() + (0 if log_decay is None else log_decay)
    )  # (batch, length, heads)
    B, C = _per_channel(B, x.shape[2]), _per_channel(C, x.shape[2])
    one, length = torch.ones_like(decay[:, 0, :, None]), decay.shape[1]
    rows = [one]  # (batch, heads, j up to i), by i
    for i in range(1, length):
        rows.append(torch.cat([rows[-1] * decay[:, i, :, None], one], -1))
    L = torch.stack([F.pad(row, (0, length - 1 - i)) for i, row in enumerate(rows)], 1)
    from_start, u, h = decay.cumprod(1), dt[..., None] * x, initial_state.double()
    y = torch.einsum("bihj,bihn,bjhn,bjhp->bihp", L, C, B, u)
    y = y + from_start[..., None] * torch.einsum("bihn,bhpn->bihp", C, h)
    y = y + D.double().repeat_interleave(x.shape[3] // D.shape[1], 1) * x
    last = from_start[:, -1, :, None, None] * h
    last = last + torch.einsum("bhj,bjhn,bjhp->bhpn", L[:, -1], B, u)
    if z is not None:
        y = y * F.silu(z)
    return (y.flip(1) if reverse else y), last
