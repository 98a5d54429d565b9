"""Kernels of state space duality in Triton: states of chunks, states between chunks, results.

See ``triton_kernels`` for the formulas and the tiles. The first two serve the backward pass too.
"""

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
from mamba_export.operators.triton_math import row_of, sigmoid

_SUMS_STRIDES = (
    "rows_stride_b", "rows_stride_l", "rows_stride_h", "z_stride_b", "z_stride_l", "z_stride_h",
    "columns_stride_b", "columns_stride_l", "columns_stride_g", "d_state",
)  # fmt: skip
_SCAN_STRIDES = (
    "x_stride_b", "x_stride_l", "x_stride_h", "z_stride_b", "z_stride_l", "z_stride_h",
    "B_stride_b", "B_stride_l", "B_stride_g", "C_stride_b", "C_stride_l", "C_stride_g", "d_state",
)  # fmt: skip


def _sums(
    rows_ptr, columns_ptr, z_ptr, step_ptr, exponent_ptr, sums_ptr,
    rows_stride_b, rows_stride_l, rows_stride_h, z_stride_b, z_stride_l, z_stride_h,
    columns_stride_b, columns_stride_l, columns_stride_g,
    length, heads, heads_a_group, n_chunks, head_dim, d_state,
    ADJOINT: tl.constexpr, HAS_Z: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A chunk's own part of a state, into sums (batch, heads, n_chunks, head_dim, d_state).

    Of the forward walk what the chunk adds to the state behind it, of x and B; of the backward walk
    (ADJOINT) what it adds to the gradient of the state before it, of dy and C.
    """
    pid = tl.program_id(0)
    b, head, group, chunk = locate(pid, n_chunks, heads, heads_a_group)
    blocks_n = tl.cdiv(d_state, BLOCK_N)
    p = tl.program_id(1) // blocks_n * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.program_id(1) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_p, in_n = p < head_dim, n < d_state
    t = chunk * CHUNK + tl.arange(0, CHUNK)
    in_t, row = t < length, row_of(t, length, REVERSE)
    steps = (b * heads + head) * n_chunks * CHUNK + t

    exponent = tl.load(exponent_ptr + steps)
    of_rows = rows_ptr + b * rows_stride_b + head * rows_stride_h
    rows = tile_of(of_rows, row, in_t, rows_stride_l, p, in_p)
    if ADJOINT:
        if HAS_Z:
            z = tile_of(z_ptr + b * z_stride_b + head * z_stride_h, row, in_t, z_stride_l, p, in_p)
            rows = gated(rows, z, HAS_Z)
        weight = decay_from_start(exponent, CHUNK)
    else:
        weight = decay_to_end(exponent, CHUNK) * tl.load(step_ptr + steps)
    of_columns = columns_ptr + b * columns_stride_b + group * columns_stride_g
    columns = tile_of(of_columns, row, in_t, columns_stride_l, n, in_n)
    total = dot(tl.trans(weight[:, None] * rows), columns, PRECISION)
    size = tl.cast(head_dim, tl.int64) * d_state
    place = p[:, None] * d_state + n[None, :]
    tl.store(sums_ptr + pid * size + place, total, mask=in_p[:, None] & in_n[None, :])


sums_kernel = jit(_sums, specialize=_SUMS_STRIDES)


def _carry(
    sums_ptr, decay_ptr, first_ptr, last_ptr, n_chunks, size,
    ADJOINT: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """States between chunks in place of the sums, one chunk after the other; the backward walk from the end.

    sums (batch, heads, n_chunks, size) then hold the state before each chunk, or the gradient of the one
    behind it. first and last are (batch, heads, size), decay (batch, heads, n_chunks) of whole chunks.
    """
    sequence = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    state = tl.load(first_ptr + sequence * size + i, mask=mask, other=0.0).to(tl.float32)
    # Some chunks at a time: their loads are on the way together, and no load can pass a store.
    for first in range(0, n_chunks, GROUP):
        own, decay = (), ()
        for j in tl.static_range(GROUP):
            k = tl.minimum(first + j, n_chunks - 1)
            chunk = sequence * n_chunks + (n_chunks - 1 - k if ADJOINT else k)
            # Triton knows no starred expression.
            sums = tl.load(sums_ptr + chunk * size + i, mask=mask, other=0.0)
            own = own + (sums,)  # type: ignore[assignment]  # noqa: RUF005
            decay = decay + (tl.load(decay_ptr + chunk),)  # type: ignore[assignment]  # noqa: RUF005
        for j in tl.static_range(GROUP):
            k = first + j
            chunk = sequence * n_chunks + (n_chunks - 1 - k if ADJOINT else k)
            there = i < tl.where(k < n_chunks, size, 0)
            tl.store(sums_ptr + chunk * size + i, state, mask=there)
            state = tl.where(k < n_chunks, decay[j] * state + own[j], state)
    tl.store(last_ptr + sequence * size + i, state, mask=mask)


carry_kernel = jit(_carry, specialize=("size",))


def _scan(
    x_ptr, B_ptr, C_ptr, D_ptr, z_ptr, step_ptr, exponent_ptr, states_ptr, y_ptr,
    x_stride_b, x_stride_l, x_stride_h, z_stride_b, z_stride_l, z_stride_h,
    B_stride_b, B_stride_l, B_stride_g, C_stride_b, C_stride_l, C_stride_g,
    length, heads, heads_a_group, n_chunks, head_dim, d_state,
    HAS_Z: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y (batch, length, heads, head_dim) of one chunk of one head and a block of channels."""
    pid = tl.program_id(0)
    b, head, group, chunk = locate(pid, n_chunks, heads, heads_a_group)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_p = p < head_dim
    t = chunk * CHUNK + tl.arange(0, CHUNK)
    in_t, row = t < length, row_of(t, length, REVERSE)
    steps = (b * heads + head) * n_chunks * CHUNK + t
    states_ptr += pid * (tl.cast(head_dim, tl.int64) * d_state)
    B_ptr += b * B_stride_b + group * B_stride_g
    C_ptr += b * C_stride_b + group * C_stride_g

    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    read = tl.zeros([CHUNK, BLOCK_P], tl.float32)
    for first in range(0, d_state, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        in_n = n < d_state
        B = tile_of(B_ptr, row, in_t, B_stride_l, n, in_n)
        C = tile_of(C_ptr, row, in_t, C_stride_l, n, in_n)
        before = state_tile(states_ptr, p, in_p, n, in_n, d_state)
        scores += dot(C, tl.trans(B), PRECISION)
        read += dot(C, tl.trans(before), PRECISION)

    exponent = tl.load(exponent_ptr + steps)
    x = tile_of(x_ptr + b * x_stride_b + head * x_stride_h, row, in_t, x_stride_l, p, in_p)
    u = tl.load(step_ptr + steps)[:, None] * x
    y = dot(scores * weights_within(exponent, CHUNK), u, PRECISION)
    D = tl.load(D_ptr + head * head_dim + p, mask=in_p, other=0.0)
    y += decay_from_start(exponent, CHUNK)[:, None] * read + D[None, :] * x
    if HAS_Z:
        z = tile_of(z_ptr + b * z_stride_b + head * z_stride_h, row, in_t, z_stride_l, p, in_p)
        y = y * z * sigmoid(z)
    place = ((b * length + row) * heads + head)[:, None] * head_dim + p[None, :]
    tl.store(y_ptr + place, y, mask=in_t[:, None] & in_p[None, :])


scan_kernel = jit(_scan, specialize=_SCAN_STRIDES)
