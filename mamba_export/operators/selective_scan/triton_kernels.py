"""Selective scan on NVIDIA GPUs in Triton, forward and backward: the training path.

The definition is ``reference.selective_scan_reference``; the kernels stand in ``triton_forward``
and ``triton_backward``. Notation, for one batch element, channel ``d`` and state ``n``, in the order of the
walk:

.. code-block:: text

    dt_t = softplus(delta_t + delta_bias)      a_t = exp(dt_t A)
    h_t  = a_t h_{t-1} + dt_t u_t B_t          r_t = sum_n C_t h_t + D u_t          y_t = r_t silu(z_t)

The backward walks the other way. With ``q_t = dy_t silu(z_t)``, the gradient of ``r_t``, and ``p_t`` the
gradient that step t hands to ``h_{t-1}`` (the walk starts from ``p = dlast_state``):

.. code-block:: text

    g_t = C_t q_t + p_{t+1}                    (gradient of h_t)
    p_t = a_t g_t                              (the last one is dinitial_state)
    dz_t = dy_t r_t silu'(z_t)                 dD += q_t u_t
    dC_t = sum_d q_t h_t                       dB_t = sum_d g_t dt_t u_t
    du_t = D q_t + dt_t sum_n g_t B_t          dA += dt_t p_t h_{t-1}
    ddt_t = u_t sum_n g_t B_t + sum_n A p_t h_{t-1}
    ddelta_t = ddt_t sigmoid(delta_t + delta_bias)      ddelta_bias += ddelta_t

With exact zero-order hold ``k_t = (a_t - 1) / A`` stands for dt_t before u_t B_t:

.. code-block:: text

    dB_t = sum_d g_t k_t u_t                   du_t = D q_t + sum_n g_t k_t B_t
    dA += dt_t p_t h_{t-1} + g_t u_t B_t (dt_t a_t - k_t) / A
    ddt_t = sum_n A p_t h_{t-1} + sum_n a_t g_t u_t B_t

States are never stored for every step. The backward stores them every ``CHUNK`` steps (pass 1), and
recomputes the steps between in registers. When there are too few sequences and channels to fill a GPU, the
length is cut into segments that run at the same time; a pass of its own (pass 2) then finds ``p`` at their
ends. Sums over channels, sequences and segments go through partial sums that torch adds up: no atomics, so
results are the same from run to run.

Every kernel works on a tile of states ``[NP, BLOCK_D]``, d_state padded to a power of two NP, one warp a
program unless the states are many. How Triton deals it out to lanes decides the speed, and follows from
what it knows of memory, where channels are side by side:

- Forward: nothing known of alignment, so a lane takes one channel, and a few of its states if BLOCK_D is
  below 32. Sums over states stay within a thread or need few shuffles.
- Backward: sums over states and, for dB and dC, sums over channels. Known alignment (d_inner a multiple of
  16; other sizes are right but slower) lets a lane take 4 neighbouring channels, as one 16-byte access
  would: with 16 states, 8 lanes along the channels and 4 along the states, 4 x 4 elements a thread. Both
  sums are then mostly additions within a thread, with 3 and 2 shuffles.
"""

import torch
import triton
from torch import Tensor

from mamba_export.operators.selective_scan.triton_backward import (
    chunk_states_kernel,
    gradients_kernel,
    segment_adjoints_kernel,
)
from mamba_export.operators.selective_scan.triton_forward import forward_kernel
from mamba_export.operators.triton_launch import on_device, unit_stride

CHUNK = 8
"""Steps between stored states in the backward; the states of one chunk live in registers."""
BUSY_PROGRAMS = 528
"""Programs that keep a large GPU busy: one for each of an H100's 4 x 132 schedulers."""
MIN_SEGMENT_CHUNKS = 8
"""Shortest segment: below it the work at a segment's ends outweighs the parallelism."""


def _tile(d_state: int, channels_per_group: int, block_d: int) -> dict[str, int]:
    """Constants of a kernel with blocks of ``block_d`` channels: its tile and what follows from it."""
    NP = triton.next_power_of_2(d_state)
    return dict(
        D_STATE=d_state,
        WHOLE=channels_per_group % block_d == 0,
        NP=NP,
        BLOCK_D=block_d,
        num_warps=max(1, min(8, NP // 64)),
    )


def _block_d(d_state: int) -> int:
    """Channels of a block: 16 states a thread, where there are so many, and no less than 8 channels."""
    return max(8, min(32, 512 // triton.next_power_of_2(d_state)))


def _channels_last(x: Tensor) -> Tensor:
    """A or states with the last two axes swapped: (.., d_inner, d_state) <-> (.., d_state, d_inner).

    The kernels want channels side by side in memory: see the module's docstring.
    """
    return x.transpose(-1, -2).contiguous()


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, z: Tensor | None) -> None:
    """Refuse what would read out of bounds; the dispatcher has checked the rest of the contract."""
    batch, length, d_inner = u.shape
    n_groups, d_state = B.shape[2:]
    if delta.shape != u.shape or (z is not None and z.shape != u.shape):
        raise ValueError("u, delta and z must have one shape (batch, length, d_inner)")
    if A.shape != (d_inner, d_state):
        raise ValueError(
            f"A must be (d_inner, d_state) = {(d_inner, d_state)}, not {tuple(A.shape)}"
        )
    if B.shape != C.shape or B.shape[:2] != (batch, length) or d_inner % n_groups:
        raise ValueError(
            "B and C must be (batch, length, n_groups, d_state), n_groups dividing d_inner"
        )


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
    """Selective scan.

    Args:
        u, delta: (batch, length, d_inner), fp32, fp16 or bf16, any strides.
        A: (d_inner, d_state) fp32.
        B, C: (batch, length, n_groups, d_state) in u's dtype, any strides.
        D, delta_bias: (d_inner,) fp32.
        z: (batch, length, d_inner) in u's dtype, or None for no gate.
        initial_state: (batch, d_inner, d_state) fp32.
        delta_softplus: apply softplus to ``delta + delta_bias``.
        reverse: walk from the last step to the first.
        exact_zoh: zero-order hold for B, where it else is dt B.

    Returns:
        y (batch, length, d_inner) in u's dtype and last_state (batch, d_inner, d_state) fp32.
    """
    _check(u, delta, A, B, C, z)
    batch, length, d_inner = u.shape
    n_groups, d_state = B.shape[2:]
    u, delta, B, C = map(unit_stride, (u, delta, B, C))
    z = None if z is None else unit_stride(z)
    D, delta_bias = D.contiguous(), delta_bias.contiguous()
    y = torch.empty((batch, length, d_inner), dtype=u.dtype, device=u.device)
    if y.numel() == 0 or d_state == 0:
        return y, initial_state.clone()
    last_state = torch.empty((batch, d_state, d_inner), device=u.device)

    channels_per_group = d_inner // n_groups
    block_d = _block_d(d_state)
    # Smaller blocks repeat more work (softplus, gate, loads of B and C), but keep more schedulers busy.
    while block_d > 8 and batch * d_inner // block_d < BUSY_PROGRAMS:
        block_d //= 2
    blocks_per_group = triton.cdiv(channels_per_group, block_d)
    tile = _tile(d_state, channels_per_group, block_d)
    with on_device(u):
        forward_kernel[(batch * n_groups * blocks_per_group,)](
            u, delta, _channels_last(A), B, C, D, u if z is None else z, delta_bias,
            _channels_last(initial_state), y, last_state,
            *u.stride()[:2], *delta.stride()[:2], *(u if z is None else z).stride()[:2],
            *B.stride()[:3], *C.stride()[:3],
            length, d_inner, n_groups, channels_per_group, blocks_per_group,
            HAS_Z=z is not None, SOFTPLUS=delta_softplus, REVERSE=reverse, EXACT_ZOH=exact_zoh, **tile,
        )  # fmt: skip
    return y, _channels_last(last_state)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of :func:`selective_scan_forward`; nothing of the forward needs to be kept but its inputs.

    Args:
        dy: (batch, length, d_inner), gradient of y, any strides.
        dlast_state: (batch, d_inner, d_state) fp32, gradient of last_state.
        others: as in the forward.

    Returns:
        Gradients of u, delta, A, B, C, D, z (None without a gate), delta_bias and initial_state, each
        with its input's shape and dtype.
    """
    _check(u, delta, A, B, C, z)
    batch, length, d_inner = u.shape
    n_groups, d_state = B.shape[2:]
    dy, u, delta, B, C = map(unit_stride, (dy, u, delta, B, C))
    z = None if z is None else unit_stride(z)
    D, delta_bias = D.contiguous(), delta_bias.contiguous()
    if u.numel() == 0 or d_state == 0:
        raise ValueError(f"no gradient of an empty scan: u {tuple(u.shape)}, d_state {d_state}")

    channels_per_group = d_inner // n_groups
    block_d = _block_d(d_state)
    blocks_per_group = triton.cdiv(channels_per_group, block_d)
    tile = _tile(d_state, channels_per_group, block_d)
    blocks = batch * n_groups * blocks_per_group
    n_chunks = triton.cdiv(length, CHUNK)
    # The gradient kernel's registers let two programs a scheduler run: cut so that all run at once.
    wanted = max(1, 2 * BUSY_PROGRAMS // blocks)
    segment_chunks = max(MIN_SEGMENT_CHUNKS, triton.cdiv(n_chunks, wanted))
    n_segments = triton.cdiv(n_chunks, segment_chunks)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=u.device)

    states = empty(batch, n_chunks, d_state, d_inner)
    A_tile, dlast = _channels_last(A), _channels_last(dlast_state)
    adjoints = dlast if n_segments == 1 else empty(batch, n_segments, d_state, d_inner)
    du = empty(batch, length, d_inner, dtype=u.dtype)
    ddelta = empty(batch, length, d_inner, dtype=delta.dtype)
    dz = None if z is None else empty(batch, length, d_inner, dtype=z.dtype)
    dB = empty(blocks_per_group, batch, length, n_groups, d_state)
    dC = empty(blocks_per_group, batch, length, n_groups, d_state)
    dA = empty(batch * n_segments, d_state, d_inner)
    dD = empty(batch * n_segments, d_inner)
    dbias = empty(batch * n_segments, d_inner)
    dinitial = empty(batch, d_state, d_inner)
    gate = u if z is None else z  # never read without a gate

    sizes = (length, d_inner)
    grouping = (n_groups, channels_per_group, blocks_per_group)
    form = dict(SOFTPLUS=delta_softplus, REVERSE=reverse, CHUNK=CHUNK)
    with on_device(u):
        chunk_states_kernel[(blocks,)](
            u, delta, A_tile, B, delta_bias, _channels_last(initial_state), states,
            *u.stride()[:2], *delta.stride()[:2], *B.stride()[:3],
            *sizes, *grouping, n_chunks, EXACT_ZOH=exact_zoh, **form, **tile,
        )  # fmt: skip
        if n_segments > 1:
            segment_adjoints_kernel[(blocks,)](
                dy, delta, A_tile, C, gate, delta_bias, dlast, adjoints,
                *dy.stride()[:2], *delta.stride()[:2], *gate.stride()[:2], *C.stride()[:3],
                *sizes, *grouping, n_segments, segment_chunks, HAS_Z=z is not None, **form, **tile,
            )  # fmt: skip
        gradients_kernel[(blocks * n_segments,)](
            dy, u, delta, A_tile, B, C, D, gate, delta_bias, states, adjoints,
            du, ddelta, gate if dz is None else dz, dB, dC, dA, dD, dbias, dinitial,
            *dy.stride()[:2], *u.stride()[:2], *delta.stride()[:2], *gate.stride()[:2],
            *B.stride()[:3], *C.stride()[:3],
            *sizes, batch, *grouping, n_chunks, n_segments, segment_chunks,
            HAS_Z=z is not None, EXACT_ZOH=exact_zoh, **form, **tile,
        )  # fmt: skip
    return (
        du,
        ddelta,
        _channels_last(dA.sum(0)),
        dB.sum(0).to(B.dtype),
        dC.sum(0).to(C.dtype),
        dD.sum(0),
        dz,
        dbias.sum(0),
        _channels_last(dinitial),
    )
