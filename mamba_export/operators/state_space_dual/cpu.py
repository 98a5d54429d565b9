"""State space duality on a CPU, and for training: products of matrices within chunks of the length.

The block decomposition (arXiv:2405.21060, section 6): within a chunk of Q steps the operator is a masked
product ``(C B^T * L) (dt x)``, and chunks hand on a state. Sums of the decay's exponents are made of their own
terms, never as differences of longer sums, so that a step which forgets everything costs nothing of its
neighbours' exactness. The backward pass keeps the states between chunks and lets autograd differentiate a
chunk that it computes again, so memory does not grow with length x d_state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.operators.dtypes import accumulation_dtype
from mamba_export.operators.state_space_dual.steps import steps_and_exponents

_CHUNK = 64


@dataclass
class _Prepared:
    """Inputs in the accumulation dtype, in walking order, heads split as (n_groups, heads of a group)."""

    x: Tensor  # (batch, length, G, H, P)
    dt: Tensor  # (batch, length, G, H)
    exponent: Tensor  # (batch, length, G, H), at most 0
    B: Tensor  # (batch, length, G, N)
    C: Tensor  # (batch, length, G, N)
    state: Tensor  # (batch, G, H, P, N)

    @property
    def sequences(self) -> list[Tensor]:
        return [self.x, self.dt, self.exponent, self.B, self.C]

    def chunks(self) -> list[slice]:
        length = self.x.shape[1]
        return [slice(t, min(t + _CHUNK, length)) for t in range(0, length, _CHUNK)]


def _walk(tensor: Tensor, reverse: bool) -> Tensor:
    return tensor.flip(1) if reverse else tensor


def _prepare(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    log_decay: Tensor | None,
    dt_bias: Tensor,
    initial_state: Tensor,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    reverse: bool,
) -> _Prepared:
    acc = accumulation_dtype(x.dtype)
    groups = B.shape[2]
    split = (groups, x.shape[2] // groups)
    step, exponent = steps_and_exponents(
        dt.to(acc),
        A.to(acc),
        None if log_decay is None else log_decay.to(acc),
        dt_bias.to(acc),
        dt_softplus,
        dt_min,
        dt_max,
    )
    return _Prepared(
        x=_walk(x, reverse).to(acc).unflatten(2, split),
        dt=_walk(step, reverse).unflatten(2, split),
        exponent=_walk(exponent, reverse).unflatten(2, split),
        B=_walk(B, reverse).to(acc),
        C=_walk(C, reverse).to(acc),
        state=initial_state.to(acc).unflatten(1, split),
    )


def _between(exponent: Tensor) -> Tensor:
    """exponent (..., Q) -> (..., Q, Q): entry (i, j) is its sum over j < k <= i, and -inf where j > i."""
    steps = exponent.shape[-1]
    later = torch.ones(steps, steps, dtype=torch.bool, device=exponent.device).tril(-1)
    terms = exponent[..., None].expand(*exponent.shape, steps).masked_fill(~later, 0)
    return terms.cumsum(-2).masked_fill(later.T, float("-inf"))


def _chunk(sequences: Sequence[Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk: y (batch, Q, G, H, P) without skip and gate, and the state after it.

    Args:
        sequences: x, dt, exponent, B and C, shaped as in ``_Prepared``, with Q steps.
        h: (batch, G, H, P, N), the state before it.
    """
    x, dt, exponent, B, C = sequences
    decays = exponent.permute(0, 2, 3, 1)  # (batch, G, H, Q)
    weights = torch.exp(_between(decays))  # (batch, G, H, Q, Q)
    dt_x = (dt[..., None] * x).permute(0, 2, 3, 1, 4)  # (batch, G, H, Q, P)
    Bg, Cg = B.transpose(1, 2), C.transpose(1, 2)  # (batch, G, Q, N)
    scores = Cg @ Bg.transpose(-1, -2)
    from_start = torch.exp(decays.cumsum(-1))  # (batch, G, H, Q)
    y = (scores[:, :, None] * weights) @ dt_x
    y = y + from_start[..., None] * (Cg[:, :, None] @ h.transpose(-1, -2))
    weighted = dt_x * weights[..., -1, :, None]
    added = weighted.transpose(-1, -2) @ Bg[:, :, None]
    return y.permute(0, 3, 1, 2, 4), from_start[..., -1, None, None] * h + added


def state_space_dual_forward(
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
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Forward pass; arguments and results as in ``state_space_dual_reference``."""
    p = _prepare(
        x, dt, A, B, C, log_decay, dt_bias, initial_state, dt_softplus, dt_min, dt_max, reverse
    )
    h, y = p.state, torch.empty_like(p.x)
    for span in p.chunks():
        y[:, span], h = _chunk([one[:, span] for one in p.sequences], h)
    out = _finish(_walk(y.flatten(2, 3), reverse), x, D, z)
    return out.to(x.dtype), h.flatten(1, 2).to(initial_state.dtype).contiguous()


def _finish(y: Tensor, x: Tensor, D: Tensor, z: Tensor | None) -> Tensor:
    """Skip and gate."""
    y = y + D.to(y.dtype).repeat_interleave(x.shape[3] // D.shape[1], 1) * x.to(y.dtype)
    return y if z is None else y * F.silu(z.to(y.dtype))


def state_space_dual_backward(
    dy: Tensor,
    dlast_state: Tensor,
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
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    reverse: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of every tensor input, in input order; None where one is absent."""
    acc = accumulation_dtype(x.dtype)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().to(acc).requires_grad_()

    leaves = [leaf(one) for one in (x, dt, A, B, C, D, dt_bias)]
    x_, dt_, A_, B_, C_, D_, dt_bias_ = leaves
    z_ = None if z is None else leaf(z)
    log_decay_ = None if log_decay is None else leaf(log_decay)
    with torch.enable_grad():
        p = _prepare(
            x_, dt_, A_, B_, C_, log_decay_, dt_bias_, initial_state,
            dt_softplus, dt_min, dt_max, reverse,
        )  # fmt: skip
    sequences = [one.detach() for one in p.sequences]
    boundaries, parts = [p.state], []
    for span in p.chunks():
        y, h = _chunk([one[:, span] for one in sequences], boundaries[-1])
        parts.append(y)
        boundaries.append(h)

    scanned = leaf(_walk(torch.cat(parts, 1).flatten(2, 3), reverse))
    with torch.enable_grad():
        out = _finish(scanned, x_, D_, z_)
    ends = [scanned, x_, D_] + ([] if z_ is None else [z_])
    dscanned, dx_skip, dD, *dz = torch.autograd.grad(out, ends, dy.to(acc))
    dscanned = _walk(dscanned, reverse).unflatten(2, p.x.shape[2:4])

    dsequences = [torch.empty_like(one) for one in sequences]
    dh = dlast_state.to(acc).unflatten(1, p.state.shape[1:3])
    for index, span in reversed(list(enumerate(p.chunks()))):
        pieces, h = [leaf(one[:, span]) for one in sequences], leaf(boundaries[index])
        with torch.enable_grad():
            outputs = _chunk(pieces, h)
        *found, dh = torch.autograd.grad(outputs, [*pieces, h], (dscanned[:, span], dh))
        for whole, part in zip(dsequences, found, strict=True):
            whole[:, span] = part

    starts = [x_, dt_, A_, B_, C_, dt_bias_] + ([] if log_decay_ is None else [log_decay_])
    dx, ddt, dA, dB, dC, dbias, *dlog = torch.autograd.grad(p.sequences, starts, dsequences)
    given = (x, dt, A, B, C, D, z, log_decay, dt_bias, initial_state)
    gradients = (
        dx + dx_skip, ddt, dA, dB, dC, dD, dz[0] if dz else None, dlog[0] if dlog else None,
        dbias, dh.flatten(1, 2),
    )  # fmt: skip
    return tuple(
        None if tensor is None or found is None else found.to(tensor.dtype)
        for tensor, found in zip(given, gradients, strict=True)
    )
