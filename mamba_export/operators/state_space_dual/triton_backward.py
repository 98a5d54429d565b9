"""Gradient kernels of state space duality in Triton. See ``triton_kernels`` for the formulas and the tiles."""

import triton.language as tl

from mamba_export.operators.state_space_dual.triton_device import (
    decay_from_start,
    decay_to_end,
    dot,
    gated,
    locate,
    state_tile,
    tile_of,
    weights_within,
)
from mamba_export.operators.triton_launch import jit
from mamba_export.operators.triton_math import LOG2E, row_of, sigmoid

_STRIDES = (
    "dy_stride_b", "dy_stride_l", "dy_stride_h", "x_stride_b", "x_stride_l", "x_stride_h",
    "z_stride_b", "z_stride_l", "z_stride_h",
    "B_stride_b", "B_stride_l", "B_stride_g", "C_stride_b", "C_stride_l", "C_stride_g", "d_state",
)  # fmt: skip


def _of_heads(
    dy_ptr, x_ptr, B_ptr, C_ptr, D_ptr, z_ptr, step_ptr, exponent_ptr, states_ptr, adjoints_ptr,
    dx_ptr, dz_ptr, dstep_ptr, dexponent_ptr, dD_ptr,
    dy_stride_b, dy_stride_l, dy_stride_h, x_stride_b, x_stride_l, x_stride_h,
    z_stride_b, z_stride_l, z_stride_h,
    B_stride_b, B_stride_l, B_stride_g, C_stride_b, C_stride_l, C_stride_g,
    length, heads, heads_a_group, n_chunks, head_dim, d_state,
    HAS_Z: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What belongs to a head alone, for one chunk: dx, dz, dstep, dexponent, and dD's part.

    dstep and dexponent are (batch, heads, n_chunks * CHUNK), dD (batch, heads, n_chunks, head_dim).
    """
    pid = tl.program_id(0)
    b, head, group, chunk = locate(pid, n_chunks, heads, heads_a_group)
    i = tl.arange(0, CHUNK)
    t = chunk * CHUNK + i
    in_t, row = t < length, row_of(t, length, REVERSE)
    steps = (b * heads + head) * n_chunks * CHUNK + t
    size = tl.cast(head_dim, tl.int64) * d_state
    states_ptr += pid * size
    adjoints_ptr += pid * size
    B_ptr += b * B_stride_b + group * B_stride_g
    C_ptr += b * C_stride_b + group * C_stride_g
    x_ptr += b * x_stride_b + head * x_stride_h
    dy_ptr += b * dy_stride_b + head * dy_stride_h
    if HAS_Z:
        z_ptr += b * z_stride_b + head * z_stride_h

    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    for first in range(0, d_state, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        B = tile_of(B_ptr, row, in_t, B_stride_l, n, n < d_state)
        C = tile_of(C_ptr, row, in_t, C_stride_l, n, n < d_state)
        scores += dot(C, tl.trans(B), PRECISION)
    exponent, step = tl.load(exponent_ptr + steps), tl.load(step_ptr + steps)
    start, end = decay_from_start(exponent, CHUNK), decay_to_end(exponent, CHUNK)
    mixing = scores * weights_within(exponent, CHUNK)

    products = tl.zeros([CHUNK, CHUNK], tl.float32)  # [i, j]: q_i u_j
    dstep = tl.zeros([CHUNK], tl.float32)
    dstart = tl.zeros([CHUNK], tl.float32)  # through what step i reads of the state before
    dend = tl.zeros([CHUNK], tl.float32)  # through what step j leaves in the state behind
    dwhole = 0.0  # through the state that passes the chunk
    for first_p in range(0, head_dim, BLOCK_P):
        p = first_p + tl.arange(0, BLOCK_P)
        in_p = p < head_dim
        left = tl.zeros([CHUNK, BLOCK_P], tl.float32)
        read = tl.zeros([CHUNK, BLOCK_P], tl.float32)
        for first in range(0, d_state, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            in_n = n < d_state
            B = tile_of(B_ptr, row, in_t, B_stride_l, n, in_n)
            C = tile_of(C_ptr, row, in_t, C_stride_l, n, in_n)
            before = state_tile(states_ptr, p, in_p, n, in_n, d_state)
            behind = state_tile(adjoints_ptr, p, in_p, n, in_n, d_state)
            left += dot(B, tl.trans(behind), PRECISION)
            read += dot(C, tl.trans(before), PRECISION)
            dwhole += tl.sum(before * behind)
        left, read = end[:, None] * left, start[:, None] * read
        x = tile_of(x_ptr, row, in_t, x_stride_l, p, in_p)
        dy = tile_of(dy_ptr, row, in_t, dy_stride_l, p, in_p)
        D = tl.load(D_ptr + head * head_dim + p, mask=in_p, other=0.0)
        u = step[:, None] * x
        place = ((b * length + row) * heads + head)[:, None] * head_dim + p[None, :]
        inside = in_t[:, None] & in_p[None, :]
        q = dy
        if HAS_Z:
            z = tile_of(z_ptr, row, in_t, z_stride_l, p, in_p)
            q = gated(dy, z, HAS_Z)
            r = dot(mixing, u, PRECISION) + read + D[None, :] * x
            gate = sigmoid(z)
            tl.store(dz_ptr + place, dy * r * gate * (1.0 + z * (1.0 - gate)), mask=inside)
        du = dot(tl.trans(mixing), q, PRECISION) + left
        tl.store(dx_ptr + place, step[:, None] * du + D[None, :] * q, mask=inside)
        tl.store(dD_ptr + tl.cast(pid, tl.int64) * head_dim + p, tl.sum(q * x, axis=0), mask=in_p)
        products += dot(q, tl.trans(u), PRECISION)
        dstep += tl.sum(x * du, axis=1)
        dstart += tl.sum(q * read, axis=1)
        dend += tl.sum(u * left, axis=1)
    tl.store(dstep_ptr + steps, dstep)

    # The exponent of step k is in the weights [i, j] with j < k <= i.
    earlier = tl.where(i[:, None] < i[None, :], 1.0, 0.0)
    over_j = dot(mixing * products, earlier, PRECISION)  # [i, k]
    not_before = i[:, None] >= i[None, :]  # [i, k]
    dexponent = tl.sum(tl.where(not_before, over_j + dstart[:, None], 0.0), axis=0)
    dexponent += tl.sum(tl.where(not_before, 0.0, dend[:, None]), axis=0)
    dexponent += tl.exp2(tl.sum(exponent, axis=0) * LOG2E) * dwhole
    tl.store(dexponent_ptr + steps, dexponent)


heads_kernel = jit(_of_heads, specialize=_STRIDES)


def _of_groups(
    dy_ptr, x_ptr, B_ptr, C_ptr, z_ptr, step_ptr, exponent_ptr, states_ptr, adjoints_ptr,
    dB_ptr, dC_ptr,
    dy_stride_b, dy_stride_l, dy_stride_h, x_stride_b, x_stride_l, x_stride_h,
    z_stride_b, z_stride_l, z_stride_h,
    B_stride_b, B_stride_l, B_stride_g, C_stride_b, C_stride_l, C_stride_g,
    length, batch, heads, heads_a_group, n_chunks, head_dim, d_state, head_blocks, heads_a_program,
    HAS_Z: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Parts of dB and dC (head_blocks, batch, length, groups, d_state): of some heads of a group."""
    pid = tl.program_id(0)
    groups = heads // heads_a_group
    chunk, group = pid % n_chunks, (pid // n_chunks) % groups
    block = pid // n_chunks // groups % head_blocks
    b = (pid // n_chunks // groups // head_blocks).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = n < d_state
    t = chunk * CHUNK + tl.arange(0, CHUNK)
    in_t, row = t < length, row_of(t, length, REVERSE)
    size = tl.cast(head_dim, tl.int64) * d_state
    of_group_B = B_ptr + b * B_stride_b + group * B_stride_g
    of_group_C = C_ptr + b * C_stride_b + group * C_stride_g
    B = tile_of(of_group_B, row, in_t, B_stride_l, n, in_n)
    C = tile_of(of_group_C, row, in_t, C_stride_l, n, in_n)

    dB = tl.zeros([CHUNK, BLOCK_N], tl.float32)
    dC = tl.zeros([CHUNK, BLOCK_N], tl.float32)
    first_head = group * heads_a_group + block * heads_a_program
    behind_last = tl.minimum(first_head + heads_a_program, (group + 1) * heads_a_group)
    for head in range(first_head, behind_last):
        sequence = b * heads + head
        steps = sequence * n_chunks * CHUNK + t
        exponent, step = tl.load(exponent_ptr + steps), tl.load(step_ptr + steps)
        state = (sequence * n_chunks + chunk) * size
        products = tl.zeros([CHUNK, CHUNK], tl.float32)
        dB_state = tl.zeros([CHUNK, BLOCK_N], tl.float32)
        dC_state = tl.zeros([CHUNK, BLOCK_N], tl.float32)
        for first_p in range(0, head_dim, BLOCK_P):
            p = first_p + tl.arange(0, BLOCK_P)
            in_p = p < head_dim
            of_x = x_ptr + b * x_stride_b + head * x_stride_h
            u = step[:, None] * tile_of(of_x, row, in_t, x_stride_l, p, in_p)
            of_dy = dy_ptr + b * dy_stride_b + head * dy_stride_h
            q = tile_of(of_dy, row, in_t, dy_stride_l, p, in_p)
            if HAS_Z:
                of_z = z_ptr + b * z_stride_b + head * z_stride_h
                q = gated(q, tile_of(of_z, row, in_t, z_stride_l, p, in_p), HAS_Z)
            before = state_tile(states_ptr + state, p, in_p, n, in_n, d_state)
            behind = state_tile(adjoints_ptr + state, p, in_p, n, in_n, d_state)
            products += dot(q, tl.trans(u), PRECISION)
            dB_state += dot(u, behind, PRECISION)
            dC_state += dot(q, before, PRECISION)
        weighted = products * weights_within(exponent, CHUNK)
        dB += dot(tl.trans(weighted), C, PRECISION)
        dB += decay_to_end(exponent, CHUNK)[:, None] * dB_state
        dC += dot(weighted, B, PRECISION)
        dC += decay_from_start(exponent, CHUNK)[:, None] * dC_state
    place = (((block * batch + b) * length + row) * groups + group)[:, None] * d_state + n[None, :]
    inside = in_t[:, None] & in_n[None, :]
    tl.store(dB_ptr + place, dB, mask=inside)
    tl.store(dC_ptr + place, dC, mask=inside)


groups_kernel = jit(_of_groups, specialize=_STRIDES)
