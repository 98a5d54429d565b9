"""Device functions that the operators' Triton kernels share."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def row_of(t, length, REVERSE: tl.constexpr):
    """Position in memory of step t of the walk; 64 bits, because it is multiplied by a stride."""
    if REVERSE:
        t = length - 1 - t
    return tl.cast(t, tl.int64)
