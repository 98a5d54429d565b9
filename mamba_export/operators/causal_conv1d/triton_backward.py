"""The convolution's backward kernels in Triton. See ``triton_kernels`` for the formulas and the tiles."""

import triton
import triton.language as tl

from mamba_export.operators.causal_conv1d.triton_device import SIZES, initial_steps, steps
from mamba_export.operators.triton_math import row_of, sigmoid


@triton.jit(do_not_specialize=SIZES)
def backward_pre_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, initial_ptr, dpre_ptr, dweight_ptr, dbias_ptr,
    dy_stride_b, dy_stride_l, x_stride_b, x_stride_l, initial_stride_b, initial_stride_d, initial_stride_k,
    length, channels, tiles, tiles_a_program,
    K: tl.constexpr, KP: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dpre (batch, length, channels) in the walk's order, and this program's share of dweight and dbias.

    ``tiles`` here counts programs a sequence. dweight is (programs, channels, K), dbias (programs, channels).
    """
    program = tl.program_id(0).to(tl.int64)
    b = program // tiles
    first_tile = (tl.program_id(0) % tiles) * tiles_a_program
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < channels
    taps = tl.arange(0, KP)
    dy_ptr += b * dy_stride_b
    x_ptr += b * x_stride_b
    initial_ptr += b * initial_stride_b
    dpre_ptr += b * length * channels
    bias = tl.load(bias_ptr + d, mask=in_d, other=0.0)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    dweight = tl.zeros([BLOCK_D, KP], tl.float32)
    for tile in range(first_tile, first_tile + tiles_a_program):
        start = tile * BLOCK_T
        t = start + tl.arange(0, BLOCK_T)
        here = (t < length)[:, None] & in_d[None, :]
        dpre = tl.load(
            dy_ptr + row_of(t, length, REVERSE)[:, None] * dy_stride_l + d[None, :], mask=here, other=0.0
        ).to(tl.float32)  # fmt: skip
        if SILU:
            pre = tl.zeros([BLOCK_T, BLOCK_D], tl.float32) + bias[None, :]
            for k in tl.static_range(K):
                w = tl.load(weight_ptr + d * K + k, mask=in_d, other=0.0)
                pre += w[None, :] * steps(
                    x_ptr, t - (K - 1) + k, d, in_d, length, x_stride_l, REVERSE
                )
            if start == 0:
                for k in tl.static_range(K - 1):
                    w = tl.load(weight_ptr + d * K + k, mask=in_d, other=0.0)
                    pre += w[None, :] * initial_steps(
                        initial_ptr, t - (K - 1) + k, d, in_d, initial_stride_d, initial_stride_k, K
                    )
            s = sigmoid(pre)
            dpre = dpre * s * (1.0 + pre * (1.0 - s))
        tl.store(dpre_ptr + t.to(tl.int64)[:, None] * channels + d[None, :], dpre, mask=here)
        dbias += tl.sum(dpre, axis=0)
        for k in tl.static_range(K):
            x = steps(x_ptr, t - (K - 1) + k, d, in_d, length, x_stride_l, REVERSE)
            dweight += tl.where(taps == k, 1.0, 0.0)[None, :] * tl.sum(dpre * x, axis=0)[:, None]
        if start == 0:
            for k in tl.static_range(K - 1):
                x = initial_steps(
                    initial_ptr, t - (K - 1) + k, d, in_d, initial_stride_d, initial_stride_k, K
                )
                dweight += (
                    tl.where(taps == k, 1.0, 0.0)[None, :] * tl.sum(dpre * x, axis=0)[:, None]
                )
    tl.store(dbias_ptr + program * channels + d, dbias, mask=in_d)
    tl.store(
        dweight_ptr + program * channels * K + d[:, None] * K + taps[None, :],
        dweight,
        mask=in_d[:, None] & (taps < K)[None, :],
    )


@triton.jit(do_not_specialize=SIZES)
def backward_input_kernel(
    dpre_ptr, weight_ptr, dlast_ptr, dx_ptr, dinitial_ptr,
    length, channels, tiles,
    K: tl.constexpr, REVERSE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx, and the initial state's gradient, which is dx of the K - 1 steps before the first.

    dlast and dinitial are contiguous (batch, channels, K - 1); tiles start at step -(K - 1).
    """
    b = (tl.program_id(0) // tiles).to(tl.int64)
    t = (tl.program_id(0) % tiles) * BLOCK_T + tl.arange(0, BLOCK_T) - (K - 1)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < channels
    dpre_ptr += b * length * channels
    dx_ptr += b * length * channels
    dlast_ptr += b * channels * (K - 1)
    dinitial_ptr += b * channels * (K - 1)
    # Step t is entry t - (length - (K - 1)) of the last state.
    entry = t - (length - (K - 1))
    dx = tl.load(
        dlast_ptr + d[None, :] * (K - 1) + entry[:, None],
        mask=((entry >= 0) & (t < length))[:, None] & in_d[None, :],
        other=0.0,
    ).to(tl.float32)
    for k in tl.static_range(K):
        later = t + (K - 1) - k
        w = tl.load(weight_ptr + d * K + k, mask=in_d, other=0.0)
        dx += w[None, :] * tl.load(
            dpre_ptr + later.to(tl.int64)[:, None] * channels + d[None, :],
            mask=((later >= 0) & (later < length))[:, None] & in_d[None, :],
            other=0.0,
        )
    tl.store(
        dx_ptr + row_of(t, length, REVERSE)[:, None] * channels + d[None, :],
        dx,
        mask=((t >= 0) & (t < length))[:, None] & in_d[None, :],
    )
    tl.store(
        dinitial_ptr + d[None, :] * (K - 1) + (t + (K - 1))[:, None],
        dx,
        mask=(t < 0)[:, None] & in_d[None, :],
    )
