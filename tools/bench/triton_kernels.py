"""Two kernels that do one thing as fast as a GPU can: move bytes, and exponentiate."""

from __future__ import annotations

import triton
import triton.language as tl

COPY_BLOCK = 4096
"""Elements of 4 bytes that a program copies: 16 a thread, in loads of 16 bytes."""
EXPONENTIAL_BLOCK = 1024
"""Numbers of a program: 8 chains a thread, enough to fill the special function units."""


@triton.jit
def copy_kernel(source, target, size, block: tl.constexpr = COPY_BLOCK):
    """target[i] = source[i]."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < size
    tl.store(target + place, tl.load(source + place, mask=inside), mask=inside)


@triton.jit
def exponential_kernel(numbers, count: tl.constexpr, block: tl.constexpr = EXPONENTIAL_BLOCK):
    """numbers = 2^-(2^-(...)), ``count`` times; the chain keeps numbers between 0 and 1."""
    place = tl.program_id(0) * block + tl.arange(0, block)
    x = tl.load(numbers + place)
    for _ in range(count):
        x = tl.exp2(-x)
    tl.store(numbers + place, x)
