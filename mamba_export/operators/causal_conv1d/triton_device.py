"""What the convolution's Triton kernels share: how they are compiled, and loads of steps.

See ``triton_kernels`` for the formulas and the tiles.
"""

import triton
import triton.language as tl

from mamba_export.operators.triton_math import row_of

SIZES = [
    "length",
    "tiles",
    "tiles_a_program",
    "initial_stride_b",
    "initial_stride_d",
    "initial_stride_k",
]
"""Arguments that change from call to call: specialising on them would only compile again."""


@triton.jit
def steps(x_ptr, t, d, in_d, length, x_stride_l, REVERSE: tl.constexpr):
    """x at steps t [T] and channels d [D] as fp32 [T, D]; zero before step 0 and past the end."""
    return tl.load(
        x_ptr + row_of(t, length, REVERSE)[:, None] * x_stride_l + d[None, :],
        mask=((t >= 0) & (t < length))[:, None] & in_d[None, :],
        other=0.0,
    ).to(tl.float32)


@triton.jit
def initial_steps(initial_ptr, t, d, in_d, initial_stride_d, initial_stride_k, K: tl.constexpr):
    """The initial state's value at steps t [T] as fp32 [T, D]; zero from step 0 on.

    A separate load under a branch: of all tiles, only the first of a sequence needs it.
    """
    d = d.to(tl.int64)
    return tl.load(
        initial_ptr + d[None, :] * initial_stride_d + (t + (K - 1))[:, None] * initial_stride_k,
        mask=((t < 0) & (t >= 1 - K))[:, None] & in_d[None, :],
        other=0.0,
    ).to(tl.float32)
