"""Forward kernel of the gated RMSNorm in Triton. See ``triton_kernels`` for the formulas."""

import triton
import triton.language as tl

from mamba_export.operators.triton_launch import jit
from mamba_export.operators.triton_math import sigmoid


@triton.jit
def locate(row, group, length, stride_b, stride_l, stride_g):
    """Where a row's group begins in memory; rows count the steps of all sequences."""
    b, t = tl.cast(row // length, tl.int64), tl.cast(row % length, tl.int64)
    return b * stride_b + t * stride_l + group * stride_g


@triton.jit
def load(ptr, i, width):
    """Channels i as fp32, zero behind the group's end."""
    return tl.load(ptr + i, mask=i < width, other=0.0).to(tl.float32)


def _forward(
    x_ptr, z_ptr, weight_ptr, y_ptr,
    x_stride_b, x_stride_l, x_stride_g, z_stride_b, z_stride_l, z_stride_g,
    length, groups, width, epsilon, NORM_FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y of one step and group."""
    row, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    x_ptr += locate(row, group, length, x_stride_b, x_stride_l, x_stride_g)
    z_ptr += locate(row, group, length, z_stride_b, z_stride_l, z_stride_g)
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        i = first + tl.arange(0, BLOCK)
        value = load(x_ptr, i, width)
        if not NORM_FIRST:
            z = load(z_ptr, i, width)
            value = value * z * sigmoid(z)
        squares += value * value
    over_root = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / width + epsilon)
    y_ptr += tl.program_id(0).to(tl.int64) * width
    for first in range(0, width, BLOCK):
        i = first + tl.arange(0, BLOCK)
        z = load(z_ptr, i, width)
        weight = load(weight_ptr + group * width, i, width)
        y = load(x_ptr, i, width) * z * sigmoid(z) * over_root * weight
        tl.store(y_ptr + i, y, mask=i < width)


forward_kernel = jit(_forward, specialize=("width", "x_stride_l", "z_stride_l"))
