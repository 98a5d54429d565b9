"""Gradient kernels of the gated RMSNorm in Triton. See ``triton_kernels`` for the formulas."""

import triton.language as tl

from mamba_export.operators.gated_rms_norm.triton_forward import load, locate
from mamba_export.operators.triton_launch import jit
from mamba_export.operators.triton_math import sigmoid

_STRIDES = ("width", "dy_stride_l", "x_stride_l", "z_stride_l")


def _sums(
    dy_ptr, x_ptr, z_ptr, weight_ptr, sums_ptr,
    dy_stride_b, dy_stride_l, dy_stride_g, x_stride_b, x_stride_l, x_stride_g,
    z_stride_b, z_stride_l, z_stride_g,
    length, groups, width, epsilon, NORM_FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one step and group: r, and the mean of n dn; sums is (rows * groups, 2)."""
    row, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    dy_ptr += locate(row, group, length, dy_stride_b, dy_stride_l, dy_stride_g)
    x_ptr += locate(row, group, length, x_stride_b, x_stride_l, x_stride_g)
    z_ptr += locate(row, group, length, z_stride_b, z_stride_l, z_stride_g)
    squares = tl.zeros([BLOCK], tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x, z = load(x_ptr, i, width), load(z_ptr, i, width)
        gate = z * sigmoid(z)
        value = x if NORM_FIRST else x * gate
        squares += value * value
        # dn v is the same in both orders.
        products += load(dy_ptr, i, width) * load(weight_ptr + group * width, i, width) * x * gate
    over_root = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / width + epsilon)
    place = sums_ptr + tl.program_id(0).to(tl.int64) * 2
    tl.store(place, over_root)
    tl.store(place + 1, tl.sum(products, axis=0) / width * over_root)


sums_kernel = jit(_sums, specialize=_STRIDES)


def _gradients(
    dy_ptr, x_ptr, z_ptr, weight_ptr, sums_ptr, dx_ptr, dz_ptr, dweight_ptr,
    dy_stride_b, dy_stride_l, dy_stride_g, x_stride_b, x_stride_l, x_stride_g,
    z_stride_b, z_stride_l, z_stride_g,
    length, groups, width, rows, rows_a_program, NORM_FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx and dz of some rows and a block of a group's channels; dweight's parts (programs, groups, width)."""
    blocks = tl.cdiv(width, BLOCK)
    part = tl.program_id(0) // (groups * blocks)
    group = tl.program_id(0) // blocks % groups
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
    weight = load(weight_ptr + group * width, i, width)
    dweight = tl.zeros([BLOCK], tl.float32)
    first = part * rows_a_program
    for row in range(first, tl.minimum(first + rows_a_program, rows)):
        place = tl.cast(row, tl.int64) * groups + group
        over_root, mean = tl.load(sums_ptr + place * 2), tl.load(sums_ptr + place * 2 + 1)
        dy = load(
            dy_ptr + locate(row, group, length, dy_stride_b, dy_stride_l, dy_stride_g), i, width
        )
        x = load(x_ptr + locate(row, group, length, x_stride_b, x_stride_l, x_stride_g), i, width)
        z = load(z_ptr + locate(row, group, length, z_stride_b, z_stride_l, z_stride_g), i, width)
        open_ = sigmoid(z)
        gate, slope = z * open_, open_ * (1.0 + z * (1.0 - open_))
        if NORM_FIRST:
            n = x * over_root
            dx = over_root * (dy * weight * gate - n * mean)
            dz = dy * weight * n * slope
        else:
            n = x * gate * over_root
            dvalue = over_root * (dy * weight - n * mean)
            dx, dz = dvalue * gate, dvalue * x * slope
        dweight += dy * (n * gate if NORM_FIRST else n)
        tl.store(dx_ptr + place * width + i, dx, mask=inside)
        tl.store(dz_ptr + place * width + i, dz, mask=inside)
    tl.store(dweight_ptr + (part.to(tl.int64) * groups + group) * width + i, dweight, mask=inside)


gradients_kernel = jit(_gradients, specialize=_STRIDES)
