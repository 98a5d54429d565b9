"""Selective scan on NVIDIA GPUs in Triton, forward and backward: the training path.

The definition is :func:`mamba_export.operators.reference.selective_scan_reference` (Euler form). Notation, for
one batch element, channel ``d`` and state ``n``, in the order of the walk:

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

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 8
"""Steps between stored states in the backward; the states of one chunk live in registers."""
BUSY_PROGRAMS = 528
"""Programs that keep a large GPU busy: one for each of an H100's 4 x 132 schedulers."""
MIN_SEGMENT_CHUNKS = 8
"""Shortest segment: below it the work at a segment's ends outweighs the parallelism."""

_LOG2E = tl.constexpr(1.4426950408889634)


def _jit(kernel, specialize: tuple[str, ...] = ()):
    """``triton.jit``, compiling again for another divisibility by 16 of those arguments only.

    Sizes and strides change from call to call, and alignment decides the layout: see the module's docstring.
    """
    names = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    sizes = [n for n in names if n.islower() or "_stride_" in n]
    return triton.jit(
        kernel,
        do_not_specialize=[n for n in sizes if not n.endswith("_ptr") and n not in specialize],
    )


_backward_jit = partial(_jit, specialize=("d_inner", "channels_per_group"))


# ------------------------------------------------------------------------------------- device functions


@triton.jit
def _step_size(x, SOFTPLUS: tl.constexpr):
    """softplus(x), accurate relative to its value however small; or x.

    ``log(1 + e) = 2 atanh(e / (2 + e))`` with e = exp(-|x|): the argument is at most 1/3, so eight terms of
    the series give full precision, where ``log(1 + e)`` itself loses a small e.
    """
    if SOFTPLUS:
        e = tl.exp2(-tl.abs(x) * _LOG2E)
        s = e / (2.0 + e)
        s2 = s * s
        series = 1.0 / 15.0
        series = 1.0 / 13.0 + s2 * series
        series = 1.0 / 11.0 + s2 * series
        series = 1.0 / 9.0 + s2 * series
        series = 1.0 / 7.0 + s2 * series
        series = 1.0 / 5.0 + s2 * series
        series = 1.0 / 3.0 + s2 * series
        x = tl.maximum(x, 0.0) + 2.0 * s * (1.0 + s2 * series)
    return x


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * _LOG2E))


@triton.jit
def _row(t, length, REVERSE: tl.constexpr):
    """Position in memory of step t of the walk; 64 bits, because it is about to meet a stride."""
    if REVERSE:
        t = length - 1 - t
    return tl.cast(t, tl.int64)


@triton.jit
def _when(valid, mask):
    """``mask & valid`` for a scalar valid; written so because Triton's interpreter broadcasts no bool."""
    return tl.where(valid, mask.to(tl.int32), 0) != 0


@triton.jit
def _block(
    pid, n_groups, channels_per_group, blocks_per_group,
    D_STATE: tl.constexpr, WHOLE: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What program ``pid`` works on.

    Returns (rest of pid, group, block in group, d [BLOCK_D], mask of d, n [NP], mask of n). A block of channels
    never crosses a group, so that one row of B and C serves all of it. WHOLE says that blocks divide a
    group evenly; masks that are true at compile time cost nothing.
    """
    blocks = n_groups * blocks_per_group
    rest = (pid // blocks).to(tl.int64)
    block = pid % blocks
    group = block // blocks_per_group
    block = block % blocks_per_group
    in_group = block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, NP)
    d = group * channels_per_group + in_group
    in_d = tl.full([BLOCK_D], True, tl.int1) if WHOLE else in_group < channels_per_group
    in_n = tl.full([NP], True, tl.int1) if NP == D_STATE else n < D_STATE
    return rest, group, block, d, in_d, n, in_n


# ---------------------------------------------------------------------------------------------- kernels


@_jit
def _forward_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, initial_ptr,
    y_ptr, last_ptr,
    u_stride_b, u_stride_l, delta_stride_b, delta_stride_l, z_stride_b, z_stride_l,
    B_stride_b, B_stride_l, B_stride_g, C_stride_b, C_stride_l, C_stride_g,
    length, d_inner, n_groups, channels_per_group, blocks_per_group,
    HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    D_STATE: tl.constexpr, WHOLE: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """y and last_state of one batch element and one block of channels, step by step."""
    b, group, _, d, in_d, n, in_n = _block(
        tl.program_id(0),
        n_groups,
        channels_per_group,
        blocks_per_group,
        D_STATE,
        WHOLE,
        NP,
        BLOCK_D,
    )
    mask = in_n[:, None] & in_d[None, :]
    tile = n[:, None] * d_inner + d[None, :]
    A = tl.load(A_ptr + tile, mask=mask, other=0.0) * _LOG2E
    D = tl.load(D_ptr + d, mask=in_d, other=0.0)
    bias = tl.load(bias_ptr + d, mask=in_d, other=0.0)
    state_size = tl.cast(d_inner, tl.int64) * D_STATE
    h = tl.load(initial_ptr + b * state_size + tile, mask=mask, other=0.0)

    u_ptr += b * u_stride_b
    delta_ptr += b * delta_stride_b
    B_ptr += b * B_stride_b + group * B_stride_g
    C_ptr += b * C_stride_b + group * C_stride_g
    y_ptr += b * length * d_inner
    if HAS_Z:
        z_ptr += b * z_stride_b

    # Each step loads the next one's inputs before it stores its own output: a load cannot pass a store.
    row = _row(0, length, REVERSE)
    u_next = tl.load(u_ptr + row * u_stride_l + d, mask=in_d, other=0.0)
    delta_next = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0)
    B_next = tl.load(B_ptr + row * B_stride_l + n, mask=in_n, other=0.0)
    C_next = tl.load(C_ptr + row * C_stride_l + n, mask=in_n, other=0.0)
    if HAS_Z:
        z_next = tl.load(z_ptr + row * z_stride_l + d, mask=in_d, other=0.0)
    for t in range(length):
        u = u_next.to(tl.float32)
        x = delta_next.to(tl.float32) + bias
        B = B_next.to(tl.float32)
        C = C_next.to(tl.float32)
        if HAS_Z:
            z = z_next.to(tl.float32)
        row = _row(tl.minimum(t + 1, length - 1), length, REVERSE)
        u_next = tl.load(u_ptr + row * u_stride_l + d, mask=in_d, other=0.0)
        delta_next = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0)
        B_next = tl.load(B_ptr + row * B_stride_l + n, mask=in_n, other=0.0)
        C_next = tl.load(C_ptr + row * C_stride_l + n, mask=in_n, other=0.0)
        if HAS_Z:
            z_next = tl.load(z_ptr + row * z_stride_l + d, mask=in_d, other=0.0)

        dt = _step_size(x, SOFTPLUS)
        h = tl.exp2(dt[None, :] * A) * h + (dt * u)[None, :] * B[:, None]
        y = tl.sum(h * C[:, None], axis=0) + D * u
        if HAS_Z:
            y = y * z * _sigmoid(z)
        tl.store(y_ptr + _row(t, length, REVERSE) * d_inner + d, y, mask=in_d)

    tl.store(last_ptr + b * state_size + tile, h, mask=mask)


@_backward_jit
def _chunk_states_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, bias_ptr, initial_ptr, states_ptr,
    u_stride_b, u_stride_l, delta_stride_b, delta_stride_l, B_stride_b, B_stride_l, B_stride_g,
    length, d_inner, n_groups, channels_per_group, blocks_per_group, n_chunks,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, CHUNK: tl.constexpr,
    D_STATE: tl.constexpr, WHOLE: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Backward, pass 1: the state before each chunk, into states (batch, n_chunks, d_state, d_inner)."""
    b, group, _, d, in_d, n, in_n = _block(
        tl.program_id(0),
        n_groups,
        channels_per_group,
        blocks_per_group,
        D_STATE,
        WHOLE,
        NP,
        BLOCK_D,
    )
    mask = in_n[:, None] & in_d[None, :]
    tile = n[:, None] * d_inner + d[None, :]
    A = tl.load(A_ptr + tile, mask=mask, other=0.0) * _LOG2E
    bias = tl.load(bias_ptr + d, mask=in_d, other=0.0)
    state_size = tl.cast(d_inner, tl.int64) * D_STATE
    h = tl.load(initial_ptr + b * state_size + tile, mask=mask, other=0.0)
    u_ptr += b * u_stride_b
    delta_ptr += b * delta_stride_b
    B_ptr += b * B_stride_b + group * B_stride_g
    states_ptr += b * n_chunks * state_size
    tl.store(states_ptr + tile, h, mask=mask)

    # All of these chunks are whole: nothing starts after the last one.
    for chunk in range(1, n_chunks):
        for i in tl.static_range(CHUNK):
            row = _row((chunk - 1) * CHUNK + i, length, REVERSE)
            u = tl.load(u_ptr + row * u_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            x = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + row * B_stride_l + n, mask=in_n, other=0.0).to(tl.float32)
            dt = _step_size(x + bias, SOFTPLUS)
            h = tl.exp2(dt[None, :] * A) * h + (dt * u)[None, :] * B[:, None]
        tl.store(states_ptr + chunk * state_size + tile, h, mask=mask)


@_backward_jit
def _segment_adjoints_kernel(
    dy_ptr, delta_ptr, A_ptr, C_ptr, z_ptr, bias_ptr, dlast_ptr, adjoints_ptr,
    dy_stride_b, dy_stride_l, delta_stride_b, delta_stride_l, z_stride_b, z_stride_l,
    C_stride_b, C_stride_l, C_stride_g,
    length, d_inner, n_groups, channels_per_group, blocks_per_group, n_segments, segment_chunks,
    HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, CHUNK: tl.constexpr,
    D_STATE: tl.constexpr, WHOLE: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Backward, pass 2: ``p`` at the end of each segment: adjoints (batch, n_segments, d_state, d_inner)."""
    b, group, _, d, in_d, n, in_n = _block(
        tl.program_id(0),
        n_groups,
        channels_per_group,
        blocks_per_group,
        D_STATE,
        WHOLE,
        NP,
        BLOCK_D,
    )
    mask = in_n[:, None] & in_d[None, :]
    tile = n[:, None] * d_inner + d[None, :]
    A = tl.load(A_ptr + tile, mask=mask, other=0.0) * _LOG2E
    bias = tl.load(bias_ptr + d, mask=in_d, other=0.0)
    state_size = tl.cast(d_inner, tl.int64) * D_STATE
    p = tl.load(dlast_ptr + b * state_size + tile, mask=mask, other=0.0)
    dy_ptr += b * dy_stride_b
    delta_ptr += b * delta_stride_b
    C_ptr += b * C_stride_b + group * C_stride_g
    if HAS_Z:
        z_ptr += b * z_stride_b
    adjoints_ptr += b * n_segments * state_size

    for k in range(n_segments):
        segment = n_segments - 1 - k
        tl.store(adjoints_ptr + segment * state_size + tile, p, mask=mask)
        # The first segment's start is the start of the walk, which the gradient kernel reaches itself.
        first_chunk = tl.where(
            segment == 0, (segment + 1) * segment_chunks, segment * segment_chunks
        )
        last_chunk = tl.minimum((segment + 1) * segment_chunks, tl.cdiv(length, CHUNK))
        for c in range(first_chunk, last_chunk):
            chunk = first_chunk + last_chunk - 1 - c
            for j in tl.static_range(CHUNK):
                t = chunk * CHUNK + CHUNK - 1 - j
                # Steps past the end read the last one, with no step size and no gradient: they do nothing.
                valid = t < length
                row = _row(tl.minimum(t, length - 1), length, REVERSE)
                q = tl.load(dy_ptr + row * dy_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
                x = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0).to(
                    tl.float32
                )
                C = tl.load(C_ptr + row * C_stride_l + n, mask=in_n, other=0.0).to(tl.float32)
                if HAS_Z:
                    z = tl.load(z_ptr + row * z_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
                    q = q * z * _sigmoid(z)
                q = tl.where(valid, q, 0.0)
                dt = tl.where(valid, _step_size(x + bias, SOFTPLUS), 0.0)
                p = tl.exp2(dt[None, :] * A) * (p + q[None, :] * C[:, None])


@_backward_jit
def _gradients_kernel(
    dy_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, adjoints_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dB_ptr, dC_ptr, dA_ptr, dD_ptr, dbias_ptr, dinitial_ptr,
    dy_stride_b, dy_stride_l, u_stride_b, u_stride_l, delta_stride_b, delta_stride_l, z_stride_b, z_stride_l,
    B_stride_b, B_stride_l, B_stride_g, C_stride_b, C_stride_l, C_stride_g,
    length, d_inner, batch, n_groups, channels_per_group, blocks_per_group,
    n_chunks, n_segments, segment_chunks,
    HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, CHUNK: tl.constexpr,
    D_STATE: tl.constexpr, WHOLE: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Backward, pass 3: every gradient, for one batch element, block of channels and segment.

    du, ddelta, dz and dinitial are final. dB and dC (blocks_per_group, batch, length, n_groups, d_state),
    dA (batch * n_segments, d_state, d_inner), dD and dbias (batch * n_segments, d_inner) are partial sums.
    dinitial is (batch, d_state, d_inner).
    """
    sequence, group, block, d, in_d, n, in_n = _block(
        tl.program_id(0),
        n_groups,
        channels_per_group,
        blocks_per_group,
        D_STATE,
        WHOLE,
        NP,
        BLOCK_D,
    )
    b = sequence // n_segments
    segment = (sequence % n_segments).to(tl.int32)
    mask = in_n[:, None] & in_d[None, :]
    tile = n[:, None] * d_inner + d[None, :]
    A = tl.load(A_ptr + tile, mask=mask, other=0.0) * _LOG2E
    D = tl.load(D_ptr + d, mask=in_d, other=0.0)
    bias = tl.load(bias_ptr + d, mask=in_d, other=0.0)

    dy_ptr += b * dy_stride_b
    u_ptr += b * u_stride_b
    delta_ptr += b * delta_stride_b
    B_ptr += b * B_stride_b + group * B_stride_g
    C_ptr += b * C_stride_b + group * C_stride_g
    du_ptr += b * length * d_inner
    ddelta_ptr += b * length * d_inner
    if HAS_Z:
        z_ptr += b * z_stride_b
        dz_ptr += b * length * d_inner
    BC_stride_l = n_groups * D_STATE
    partial = (block * tl.cast(batch, tl.int64) + b) * length * BC_stride_l + group * D_STATE
    dB_ptr += partial
    dC_ptr += partial
    state_size = tl.cast(d_inner, tl.int64) * D_STATE
    states_ptr += b * n_chunks * state_size

    p = tl.load(adjoints_ptr + sequence * state_size + tile, mask=mask, other=0.0)
    dA = tl.zeros([NP, BLOCK_D], tl.float32)
    dD = tl.zeros([BLOCK_D], tl.float32)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    first_chunk = segment * segment_chunks
    last_chunk = tl.minimum(first_chunk + segment_chunks, n_chunks)
    for c in range(first_chunk, last_chunk):
        chunk = first_chunk + last_chunk - 1 - c
        h = tl.load(states_ptr + chunk * state_size + tile, mask=mask, other=0.0)
        before = (h,)  # before[i]: the state that step i of the chunk starts from
        for i in tl.static_range(CHUNK - 1):
            # Steps past the end read the last one, and whatever they give is not used.
            row = _row(tl.minimum(chunk * CHUNK + i, length - 1), length, REVERSE)
            u = tl.load(u_ptr + row * u_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            x = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + row * B_stride_l + n, mask=in_n, other=0.0).to(tl.float32)
            dt = _step_size(x + bias, SOFTPLUS)
            h = tl.exp2(dt[None, :] * A) * h + (dt * u)[None, :] * B[:, None]
            # Triton knows no starred expression.
            before = before + (h,)  # type: ignore[assignment]  # noqa: RUF005

        for j in tl.static_range(CHUNK):
            t = chunk * CHUNK + CHUNK - 1 - j
            # Steps past the end read the last one, with no step size and no gradient: they do nothing.
            valid = t < length
            store_d, store_n = _when(valid, in_d), _when(valid, in_n)
            row = _row(tl.minimum(t, length - 1), length, REVERSE)
            dy = tl.load(dy_ptr + row * dy_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            u = tl.load(u_ptr + row * u_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            x = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + row * B_stride_l + n, mask=in_n, other=0.0).to(tl.float32)
            C = tl.load(C_ptr + row * C_stride_l + n, mask=in_n, other=0.0).to(tl.float32)
            x = x + bias
            dt = tl.where(valid, _step_size(x, SOFTPLUS), 0.0)
            dy = tl.where(valid, dy, 0.0)
            dtu = dt * u

            a = tl.exp2(dt[None, :] * A)
            decayed = a * before[CHUNK - 1 - j]
            h = decayed + dtu[None, :] * B[:, None]
            q = dy
            if HAS_Z:
                z = tl.load(z_ptr + row * z_stride_l + d, mask=in_d, other=0.0).to(tl.float32)
                gate = _sigmoid(z)
                r = tl.sum(h * C[:, None], axis=0) + D * u
                q = dy * z * gate
                dz = dy * r * gate * (1.0 + z * (1.0 - gate))
                tl.store(dz_ptr + row * d_inner + d, dz, mask=store_d)

            g = p + q[None, :] * C[:, None]
            p = a * g
            ph = g * decayed  # p_t h_{t-1}
            gB = tl.sum(g * B[:, None], axis=0)
            dA += dt[None, :] * ph
            dD += q * u
            # A carries log2(e): divide the sum by it again.
            ddelta = u * gB + tl.sum(A * ph, axis=0) * (1.0 / _LOG2E)
            if SOFTPLUS:
                ddelta = ddelta * _sigmoid(x)
            ddelta = tl.where(valid, ddelta, 0.0)
            dbias += ddelta
            dB = tl.sum(g * dtu[None, :], axis=1)
            dC = tl.sum(h * q[None, :], axis=1)
            tl.store(du_ptr + row * d_inner + d, D * q + dt * gB, mask=store_d)
            tl.store(ddelta_ptr + row * d_inner + d, ddelta, mask=store_d)
            tl.store(dB_ptr + row * BC_stride_l + n, dB, mask=store_n)
            tl.store(dC_ptr + row * BC_stride_l + n, dC, mask=store_n)

    tl.store(dA_ptr + sequence * state_size + tile, dA, mask=mask)
    tl.store(dD_ptr + sequence * d_inner + d, dD, mask=in_d)
    tl.store(dbias_ptr + sequence * d_inner + d, dbias, mask=in_d)
    if segment == 0:
        tl.store(dinitial_ptr + b * state_size + tile, p, mask=mask)


# ------------------------------------------------------------------------------------------------- host


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


def _unit_stride(x: Tensor) -> Tensor:
    """x itself if its last dimension is dense, as slices of a projection are; otherwise a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


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


def _device(x: Tensor):
    """Context in which launches go to x's device; CPU tensors are the Triton interpreter's."""
    return torch.cuda.device(x.device if x.is_cuda else -1)


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

    Returns:
        y (batch, length, d_inner) in u's dtype and last_state (batch, d_inner, d_state) fp32.
    """
    _check(u, delta, A, B, C, z)
    batch, length, d_inner = u.shape
    n_groups, d_state = B.shape[2:]
    u, delta, B, C = map(_unit_stride, (u, delta, B, C))
    z = None if z is None else _unit_stride(z)
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
    with _device(u):
        _forward_kernel[(batch * n_groups * blocks_per_group,)](
            u, delta, _channels_last(A), B, C, D, u if z is None else z, delta_bias,
            _channels_last(initial_state), y, last_state,
            *u.stride()[:2], *delta.stride()[:2], *(u if z is None else z).stride()[:2],
            *B.stride()[:3], *C.stride()[:3],
            length, d_inner, n_groups, channels_per_group, blocks_per_group,
            HAS_Z=z is not None, SOFTPLUS=delta_softplus, REVERSE=reverse, **tile,
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
    dy, u, delta, B, C = map(_unit_stride, (dy, u, delta, B, C))
    z = None if z is None else _unit_stride(z)
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
    with _device(u):
        _chunk_states_kernel[(blocks,)](
            u, delta, A_tile, B, delta_bias, _channels_last(initial_state), states,
            *u.stride()[:2], *delta.stride()[:2], *B.stride()[:3],
            *sizes, *grouping, n_chunks, **form, **tile,
        )  # fmt: skip
        if n_segments > 1:
            _segment_adjoints_kernel[(blocks,)](
                dy, delta, A_tile, C, gate, delta_bias, dlast, adjoints,
                *dy.stride()[:2], *delta.stride()[:2], *gate.stride()[:2], *C.stride()[:3],
                *sizes, *grouping, n_segments, segment_chunks, HAS_Z=z is not None, **form, **tile,
            )  # fmt: skip
        _gradients_kernel[(blocks * n_segments,)](
            dy, u, delta, A_tile, B, C, D, gate, delta_bias, states, adjoints,
            du, ddelta, gate if dz is None else dz, dB, dC, dA, dD, dbias, dinitial,
            *dy.stride()[:2], *u.stride()[:2], *delta.stride()[:2], *gate.stride()[:2],
            *B.stride()[:3], *C.stride()[:3],
            *sizes, batch, *grouping, n_chunks, n_segments, segment_chunks,
            HAS_Z=z is not None, **form, **tile,
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
