"""The convolution's forward kernel in Triton. See ``triton_kernels`` for the formulas and the tiles."""

import triton
import triton.language as tl

from mamba_export.operators.causal_conv1d.triton_device import SIZES, initial_steps, steps
from mamba_export.operators.triton_math import row_of, sigmoid


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, initial_ptr, y_ptr,
    x_stride_b, x_stride_l, initial_stride_b, initial_stride_d, initial_stride_k,
    length, channels, tiles,
    K: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """y of one tile of steps and channels; program = (batch * tiles + tile, block of channels)."""
    b = (tl.program_id(0) // tiles).to(tl.int64)
    start = (tl.program_id(0) % tiles) * BLOCK_T
    t = start + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < channels
    x_ptr += b * x_stride_b
    initial_ptr += b * initial_stride_b
    y = (
        tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        + tl.load(bias_ptr + d, mask=in_d, other=0.0)[None, :]
    )
    for k in tl.static_range(K):
        w = tl.load(weight_ptr + d * K + k, mask=in_d, other=0.0)
        y += w[None, :] * steps(x_ptr, t - (K - 1) + k, d, in_d, length, x_stride_l, REVERSE)
    if start == 0:
        for k in tl.static_range(K - 1):
            w = tl.load(weight_ptr + d * K + k, mask=in_d, other=0.0)
            y += w[None, :] * initial_steps(
                initial_ptr, t - (K - 1) + k, d, in_d, initial_stride_d, initial_stride_k, K
            )
    if SILU:
        y = y * sigmoid(y)
    y_ptr += b * length * channels
    tl.store(
        y_ptr + row_of(t, length, REVERSE)[:, None] * channels + d[None, :],
        y,
        mask=(t < length)[:, None] & in_d[None, :],
    )
