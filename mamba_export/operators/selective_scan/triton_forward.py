"""The scan's forward kernel in Triton. See ``triton_kernels`` for the formulas and the tiles."""

import triton.language as tl

from mamba_export.operators.selective_scan.triton_device import (
    locate,
    next_state,
    shift_by_turns,
    step_size,
)
from mamba_export.operators.triton_launch import jit
from mamba_export.operators.triton_math import LOG2E, row_of, sigmoid


@jit
def forward_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, initial_ptr,
    y_ptr, last_ptr,
    u_stride_b, u_stride_l, delta_stride_b, delta_stride_l, z_stride_b, z_stride_l,
    B_stride_b, B_stride_l, B_stride_g, C_stride_b, C_stride_l, C_stride_g,
    length, d_inner, n_groups, channels_per_group, blocks_per_group,
    HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, EXACT_ZOH: tl.constexpr,
    D_STATE: tl.constexpr, WHOLE: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """y and last_state of one batch element and one block of channels, step by step."""
    b, group, _, d, in_d, n, in_n = locate(
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
    A = tl.load(A_ptr + tile, mask=mask, other=0.0) * LOG2E
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
    row = row_of(0, length, REVERSE)
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
        row = row_of(tl.minimum(t + 1, length - 1), length, REVERSE)
        u_next = tl.load(u_ptr + row * u_stride_l + d, mask=in_d, other=0.0)
        delta_next = tl.load(delta_ptr + row * delta_stride_l + d, mask=in_d, other=0.0)
        B_next = tl.load(B_ptr + row * B_stride_l + n, mask=in_n, other=0.0)
        C_next = tl.load(C_ptr + row * C_stride_l + n, mask=in_n, other=0.0)
        if HAS_Z:
            z_next = tl.load(z_ptr + row * z_stride_l + d, mask=in_d, other=0.0)

        dt = step_size(x, SOFTPLUS)
        h = next_state(h, shift_by_turns(h), dt, u, A, B, EXACT_ZOH)
        y = tl.sum(h * C[:, None], axis=0) + D * u
        if HAS_Z:
            y = y * z * sigmoid(z)
        tl.store(y_ptr + row_of(t, length, REVERSE) * d_inner + d, y, mask=in_d)

    tl.store(last_ptr + b * state_size + tile, h, mask=mask)
