"""What the Triton kernels of state space duality share: what a program works on, loads, decays of a chunk.

See ``triton_kernels`` for the formulas and the tiles.
"""

import triton
import triton.language as tl

from mamba_export.operators.triton_math import LOG2E, sigmoid


@triton.jit
def locate(pid, n_chunks, heads, heads_a_group):
    """What program ``pid`` works on: (sequence, head, group, chunk), the first as 64 bits."""
    chunk = pid % n_chunks
    head = (pid // n_chunks) % heads
    b = (pid // n_chunks // heads).to(tl.int64)
    return b, head, head // heads_a_group, chunk


@triton.jit
def tile_of(ptr, rows, in_rows, stride, columns, in_columns):
    """A tile [rows, columns] as fp32, whose columns are side by side in memory; zero outside."""
    mask = in_rows[:, None] & in_columns[None, :]
    return tl.load(ptr + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def state_tile(ptr, p, in_p, n, in_n, d_state):
    """A tile [p, n] of a state (head_dim, d_state), as fp32."""
    return tile_of(ptr, p, in_p, d_state, n, in_n)


@triton.jit
def gated(dy, z, HAS_Z: tl.constexpr):
    """The gradient before the gate."""
    if HAS_Z:
        dy = dy * z * sigmoid(z)
    return dy


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """A product of fp32 tiles, accumulated in fp32."""
    return tl.dot(a, b, input_precision=PRECISION)


# A chunk's exponents are at most 0 and may be -inf. Each sum is made of its own terms: differences of longer
# sums would cancel behind a step that forgets everything, or be NaN.


@triton.jit
def weights_within(exponent, CHUNK: tl.constexpr):
    """[i, j]: what is left at step i of what step j added; 0 where j is later."""
    i = tl.arange(0, CHUNK)
    later = i[:, None] > i[None, :]
    between = tl.cumsum(tl.where(later, exponent[:, None], 0.0), axis=0)
    return tl.where(i[:, None] >= i[None, :], tl.exp2(between * LOG2E), 0.0)


@triton.jit
def decay_from_start(exponent, CHUNK: tl.constexpr):
    """[i]: what is left at step i of the state before the chunk."""
    i = tl.arange(0, CHUNK)
    so_far = tl.where(i[:, None] >= i[None, :], exponent[None, :], 0.0)
    return tl.exp2(tl.sum(so_far, axis=1) * LOG2E)


@triton.jit
def decay_to_end(exponent, CHUNK: tl.constexpr):
    """[j]: what is left behind the chunk of what step j added."""
    i = tl.arange(0, CHUNK)
    later = tl.where(i[:, None] > i[None, :], exponent[:, None], 0.0)
    return tl.exp2(tl.sum(later, axis=0) * LOG2E)
