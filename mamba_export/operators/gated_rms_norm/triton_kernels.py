"""The gated RMSNorm on NVIDIA GPUs in Triton, forward and backward: the training path.

The definition is ``reference.gated_rms_norm_reference``. Of one step and group, with ``g = silu(z)``:

.. code-block:: text

    v = x g, or x where the norm is first       r = 1 / sqrt(mean(v^2) + epsilon)       n = v r
    y = n weight, or n weight g

    dn = dy weight, or dy weight g              dv = r (dn - n mean(n dn))
    dx = dv g, or dv                            dz = dv x silu'(z), or dy weight n silu'(z)
    dweight = sum of dy n, or of dy n g, over all steps

Everything is bound by memory: a program reads a group's channels twice, the second time from the cache. The sum
over steps goes through partial sums that torch adds up: no atomics, so results are the same from run to run.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mamba_export.operators.gated_rms_norm.triton_backward import gradients_kernel, sums_kernel
from mamba_export.operators.gated_rms_norm.triton_forward import forward_kernel
from mamba_export.operators.triton_launch import on_device, unit_stride

MOST_BLOCK = 2048
"""Channels that a program takes at once."""
BUSY_PROGRAMS = 528
"""Programs that keep a large GPU busy: four for each of an H100's multiprocessors."""


def _block(width: int) -> int:
    return min(MOST_BLOCK, triton.next_power_of_2(width))


def gated_rms_norm_forward(
    x: Tensor, z: Tensor, weight: Tensor, epsilon: float, norm_before_gate: bool
) -> Tensor:
    """The gated RMSNorm; arguments and result as in ``gated_rms_norm_reference``, any strides."""
    batch, length, groups, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        x, z = unit_stride(x), unit_stride(z)
        with on_device(x):
            forward_kernel[(batch * length * groups,)](
                x, z, weight.contiguous(), y, *x.stride()[:3], *z.stride()[:3],
                length, groups, width, epsilon, NORM_FIRST=norm_before_gate, BLOCK=_block(width),
            )  # fmt: skip
    return y


def gated_rms_norm_backward(
    dy: Tensor, x: Tensor, z: Tensor, weight: Tensor, epsilon: float, norm_before_gate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, z and weight, each with its input's shape and dtype."""
    batch, length, groups, width = x.shape
    if x.numel() == 0:
        raise ValueError(f"no gradient of an empty norm: x {tuple(x.shape)}")
    dy, x, z = map(unit_stride, (dy, x, z))
    weight = weight.contiguous()
    rows, block = batch * length, _block(width)
    blocks = triton.cdiv(width, block)
    rows_a_program = triton.cdiv(rows, triton.cdiv(BUSY_PROGRAMS, groups * blocks))
    parts = triton.cdiv(rows, rows_a_program)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    sums, dweight = empty(rows * groups, 2), empty(parts, groups, width)
    dx, dz = empty(*x.shape, dtype=x.dtype), empty(*z.shape, dtype=z.dtype)
    strides = (*dy.stride()[:3], *x.stride()[:3], *z.stride()[:3])
    form = dict(NORM_FIRST=norm_before_gate, BLOCK=block)
    with on_device(x):
        sums_kernel[(rows * groups,)](
            dy, x, z, weight, sums, *strides, length, groups, width, epsilon, **form
        )
        gradients_kernel[(parts * groups * blocks,)](
            dy, x, z, weight, sums, dx, dz, dweight, *strides,
            length, groups, width, rows, rows_a_program, **form,
        )  # fmt: skip
    return dx, dz, dweight.sum(0).to(weight.dtype)
