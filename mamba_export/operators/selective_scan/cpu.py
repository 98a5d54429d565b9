"""Selective scan on a CPU: vectorised over everything but time, in chunks that fit the cache.

The sequence is cut into chunks. Within a chunk the decays ``exp(dt A)`` and inputs ``dt u B`` are computed
for all steps at once, one fused multiply-add a step runs the recurrence in place, and a batched matrix
product reads the states out. Only the states at chunk boundaries are kept for the backward pass, which
recomputes a chunk before it differentiates it, so memory does not grow with length x d_state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_export.operators.dtypes import accumulation_dtype
from mamba_export.operators.selective_scan.zero_order_hold import divisible, hold, hold_slope

# Elements of one (batch, chunk, d_inner, d_state) buffer: about the size of a core's L2 cache.
_CHUNK_ELEMENTS = 1 << 19
_MAX_CHUNK = 64


@dataclass
class _Prepared:
    """Inputs in the accumulation dtype, in walking order, with channels split as (n_groups, channels)."""

    u: Tensor  # (batch, length, G, P)
    dt: Tensor  # (batch, length, G, P), after bias and softplus
    raw_dt: Tensor  # (batch, length, G, P), before softplus
    A: Tensor  # (G, P, N)
    B: Tensor  # (batch, length, G, N)
    C: Tensor  # (batch, length, G, N)
    chunk: int
    exact_zoh: bool

    def spans(self) -> list[slice]:
        length = self.u.shape[1]
        return [slice(t, min(t + self.chunk, length)) for t in range(0, length, self.chunk)]


def _walk(tensor: Tensor, reverse: bool) -> Tensor:
    return tensor.flip(1) if reverse else tensor


def _prepare(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
    reverse: bool,
    exact_zoh: bool,
) -> _Prepared:
    acc = accumulation_dtype(u.dtype)
    batch, length, d_inner = u.shape
    n_groups, d_state = B.shape[2:]
    grouped = (batch, length, n_groups, d_inner // n_groups)
    raw_dt = _walk(delta, reverse).to(acc) + delta_bias.to(acc)
    dt = F.softplus(raw_dt) if delta_softplus else raw_dt
    return _Prepared(
        u=_walk(u, reverse).to(acc).reshape(grouped),
        dt=dt.reshape(grouped),
        raw_dt=raw_dt.reshape(grouped),
        A=(divisible(A.to(acc)) if exact_zoh else A.to(acc)).reshape(n_groups, -1, d_state),
        B=_walk(B, reverse).to(acc),
        C=_walk(C, reverse).to(acc),
        chunk=max(1, min(_MAX_CHUNK, _CHUNK_ELEMENTS // max(1, batch * d_inner * d_state))),
        exact_zoh=exact_zoh,
    )


def _chunk_states(p: _Prepared, span: slice, h: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states of one chunk, each (batch, chunk, G, P, N); h is the state before it."""
    dt_A = p.dt[:, span, :, :, None] * p.A
    decay = torch.exp(dt_A)
    if p.exact_zoh:
        states = hold(dt_A, p.A).mul_(p.u[:, span][..., None]).mul_(p.B[:, span, :, None, :])
    else:
        states = (p.dt[:, span] * p.u[:, span])[..., None] * p.B[:, span, :, None, :]
    for t in range(states.shape[1]):
        h = torch.addcmul(states[:, t], decay[:, t], h, out=states[:, t])
    return decay, states


def selective_scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    initial_state: Tensor,
    delta_softplus: bool,
    reverse: bool,
    exact_zoh: bool,
) -> tuple[Tensor, Tensor]:
    """Forward pass; arguments and results as in ``selective_scan_reference``."""
    p = _prepare(u, delta, A, B, C, delta_bias, delta_softplus, reverse, exact_zoh)
    h = initial_state.to(p.u.dtype).view(p.u.shape[0], *p.A.shape)
    y = torch.empty_like(p.u)
    for span in p.spans():
        _, states = _chunk_states(p, span, h)
        y[:, span] = torch.matmul(states, p.C[:, span, :, :, None]).squeeze(-1)
        h = states[:, -1]
    y = _walk(y.view(u.shape), reverse)
    y.addcmul_(u.to(y.dtype), D.to(y.dtype))
    if z is not None:
        y.mul_(F.silu(z.to(y.dtype)))
    return y.to(u.dtype), h.reshape(initial_state.shape).contiguous()


def selective_scan_backward(
    dy: Tensor,
    dlast_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    initial_state: Tensor,
    delta_softplus: bool,
    reverse: bool,
    exact_zoh: bool,
) -> tuple[Tensor, ...]:
    """Gradients of every tensor input, in input order (z's is zero-sized where z is None).

    With ``g_t`` the gradient of state ``h_t``:
    ``g_t = C_t dscan_t + exp(dt_{t+1} A) g_{t+1}``; then ``dB_t = sum_d g_t dt_t u_t``,
    ``du_t = dt_t sum_n g_t B_t``, ``ddt_t = sum_n g_t (A exp(dt_t A) h_{t-1} + u_t B_t)``. With exact
    zero-order hold ``(exp(dt_t A) - 1) / A`` stands for dt_t in the first two, and its derivatives come in.
    """
    p = _prepare(u, delta, A, B, C, delta_bias, delta_softplus, reverse, exact_zoh)
    acc = p.u.dtype
    batch, _length, d_inner = u.shape
    grouped = p.u.shape
    state_shape = (batch, *p.A.shape)

    dscan = dy.to(acc)
    if z is not None:
        zt = z.to(acc)
        gate = torch.sigmoid(zt)
        dscan = dscan * zt * gate
    dskip = _walk(dscan, reverse).reshape(grouped)

    boundaries = [initial_state.to(acc).view(state_shape)]
    scan = torch.empty_like(p.u) if z is not None else None
    for span in p.spans():
        _, states = _chunk_states(p, span, boundaries[-1])
        if scan is not None:
            scan[:, span] = torch.matmul(states, p.C[:, span, :, :, None]).squeeze(-1)
        boundaries.append(states[:, -1].clone())

    dz = u.new_empty(0)
    if z is not None and scan is not None:
        before_gate = _walk(scan.view(u.shape), reverse) + u.to(acc) * D.to(acc)
        dz = (dy.to(acc) * before_gate * (gate * (1 + zt * (1 - gate)))).to(z.dtype)

    du = torch.empty_like(p.u)
    ddt = torch.empty_like(p.u)
    dB, dC = torch.empty_like(p.B), torch.empty_like(p.C)
    dA = torch.zeros_like(p.A)
    g_next = dlast_state.to(acc).reshape(state_shape)
    for index, span in reversed(list(enumerate(p.spans()))):
        decay, states = _chunk_states(p, span, boundaries[index])
        dout = dskip[:, span]
        dC[:, span] = torch.einsum("blgp,blgpn->blgn", dout, states)
        g = dout[..., None] * p.C[:, span, :, None, :]
        for t in reversed(range(g.shape[1])):
            g[:, t].add_(g_next)
            g_next = decay[:, t] * g[:, t]
        previous = torch.cat([boundaries[index][:, None], states[:, :-1]], dim=1)
        ddecay = previous.mul_(decay).mul_(g)  # g_t exp(dt A) h_{t-1}
        dt, us = p.dt[:, span], p.u[:, span]
        dA += torch.einsum("blgp,blgpn->gpn", dt, ddecay)
        if p.exact_zoh:
            steps, gB = dt[..., None], g * p.B[:, span, :, None, :]
            dt_A = steps * p.A
            held = hold(dt_A, p.A)
            du[:, span] = (held * gB).sum(-1)
            dB[:, span] = torch.einsum("blgp,blgpn->blgn", us, held * g)
            guB = gB.mul_(us[..., None])
            ddt[:, span] = (ddecay * p.A + decay * guB).sum(-1)
            dA += (hold_slope(steps, dt_A, p.A, decay, held) * guB).sum((0, 1))
            continue
        gB = torch.matmul(g, p.B[:, span, :, :, None]).squeeze(-1)
        du[:, span] = dt * gB
        ddt[:, span] = us * gB + (ddecay * p.A).sum(-1)
        dB[:, span] = torch.einsum("blgp,blgpn->blgn", dt * us, g)

    du += dskip * D.to(acc).view(p.A.shape[:2])
    dD = (dskip * p.u).sum((0, 1)).view(d_inner)
    if delta_softplus:
        ddt = ddt * torch.sigmoid(p.raw_dt)
    return (
        _walk(du.view(u.shape), reverse).to(u.dtype),
        _walk(ddt.view(u.shape), reverse).to(delta.dtype),
        dA.view(A.shape).to(A.dtype),
        _walk(dB, reverse).to(B.dtype),
        _walk(dC, reverse).to(C.dtype),
        dD.to(D.dtype),
        dz,
        ddt.sum((0, 1)).view(d_inner).to(delta_bias.dtype),
        g_next.reshape(initial_state.shape).to(initial_state.dtype),
    )
