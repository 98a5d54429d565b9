"""What the scan's Triton kernels share: how they are compiled, device functions, and what a program works on.

See ``triton_kernels`` for the formulas and the tiles.
"""

from functools import partial

import triton
import triton.language as tl

from mamba_export.operators.triton_launch import jit
from mamba_export.operators.triton_math import LN2, LOG2E

backward_jit = partial(jit, specialize=("d_inner", "channels_per_group"))

# The instruction that exponentiates errs next to 1, where a state that forgets slowly adds up its errors: by
# 0.5 of 2^-24 (H100, root of the mean square), and on average it is too small by 0.1 of it. Added to an
# exponent, this makes the error 0 on average. As in plugins/kernels/common/cuda/decay.cuh.
DECAY_SHIFT = tl.constexpr(0.115 * 2.0**-24 * LOG2E.value)
# Of a forward walk it is more and less by turns, 0.875 of 2^-24 at most, so that steps that are alike do not
# round alike; a step of zero still leaves a state as it is. A state after 3001 steps of about 3e-4 is off by
# 3.5e-6 instead of 2.0e-5, and by 3.6e-5 instead of 8.7e-5 where all steps are one number, for no time (H100).
# h + (2^x - 1) h, which rounds no decay, is off by 1.4e-6, and takes 2 to 14 % longer.
_TURN = tl.constexpr(23.0 / 1024.0)  # times 2^-20: a quarter of 2^-24 in an exponent
_TURN_BITS = tl.constexpr(0b111000)
_LEAST_TURN = tl.constexpr((0.115 - 0.875) * 2.0**-24 * LOG2E.value - 23.0 / 1024.0)


@triton.jit
def step_size(x, SOFTPLUS: tl.constexpr):
    """softplus(x), accurate relative to its value however small; or x.

    ``log(1 + e) = 2 atanh(e / (2 + e))`` with e = exp(-|x|): the argument is at most 1/3, so eight terms of
    the series give full precision, where ``log(1 + e)`` itself loses a small e.
    """
    if SOFTPLUS:
        e = tl.exp2(-tl.abs(x) * LOG2E)
        s = e / (2.0 + e)
        s2 = s * s
        series = 1.0 / 15.0
        series = 1.0 / 13.0 + s2 * series
        series = 1.0 / 11.0 + s2 * series
        series = 1.0 / 9.0 + s2 * series
        series = 1.0 / 7.0 + s2 * series
        series = 1.0 / 5.0 + s2 * series
        series = 1.0 / 3.0 + s2 * series
        x = tl.maximum(x, 0.0) + 2.0 * s * (1.0 + s2 * series)
    return x


@triton.jit
def hold_of(dt, A, a):
    """How much of ``u B`` enters the state with exact zero-order hold: (exp(dt A) - 1) / A, [NP, BLOCK_D].

    Where dt A is small, dt times the series of (exp(x) - 1) / x: the difference would have lost its digits.

    Args:
        dt: [BLOCK_D].
        A: [NP, BLOCK_D], which carries log2(e).
        a: exp(dt A).
    """
    x = dt[None, :] * A * LN2
    series = 1.0 / 40320.0
    series = 1.0 / 5040.0 + x * series
    series = 1.0 / 720.0 + x * series
    series = 1.0 / 120.0 + x * series
    series = 1.0 / 24.0 + x * series
    series = 1.0 / 6.0 + x * series
    series = 0.5 + x * series
    is_small = tl.abs(x) < 0.5
    far = (a - 1.0) / tl.where(is_small, 1.0, A * LN2)
    return tl.where(is_small, dt[None, :] * (1.0 + x * series), far)


@triton.jit
def shift_by_turns(h):
    """What is added to the exponents of the decays of states h, one of eight numbers.

    Bits of the states themselves choose: they change at every step, and do not tell where a sequence was cut.
    """
    bits = h.to(tl.int32, bitcast=True) & _TURN_BITS
    turn = (bits | 0x3F800000).to(tl.float32, bitcast=True)  # 1 + i 2^-20, i from 0 to 7
    return tl.fma(turn, _TURN, _LEAST_TURN)


@triton.jit
def decay_of(dt, A, shift):
    """exp(dt A), [NP, BLOCK_D]: dt [BLOCK_D], A, which carries log2(e)."""
    return tl.exp2(tl.fma(dt[None, :], A, shift))


@triton.jit
def next_state(h, shift, dt, u, A, B, EXACT_ZOH: tl.constexpr):
    """The state after a step: dt, u [BLOCK_D], A, which carries log2(e), h [NP, BLOCK_D], B [NP]."""
    a = decay_of(dt, A, shift)
    entering = hold_of(dt, A, a) * u[None, :] if EXACT_ZOH else (dt * u)[None, :]
    return a * h + entering * B[:, None]


@triton.jit
def hold_slope_of(dt, A, a, held):
    """The derivative by A of ``hold_of`` with exact zero-order hold: (dt a - held) / A.

    Where dt A is small, dt^2 times the series ``sum_k x^k / (k! (k + 2))``, x = dt A.
    """
    step = dt[None, :]
    x = step * A * LN2
    series = 1.0 / 45360.0
    series = 1.0 / 5760.0 + x * series
    series = 1.0 / 840.0 + x * series
    series = 1.0 / 144.0 + x * series
    series = 1.0 / 30.0 + x * series
    series = 1.0 / 8.0 + x * series
    series = 1.0 / 3.0 + x * series
    is_small = tl.abs(x) < 0.5
    far = (step * a - held) / tl.where(is_small, 1.0, A * LN2)
    return tl.where(is_small, step * step * (0.5 + x * series), far)


@triton.jit
def mask_when(valid, mask):
    """``mask & valid`` for a scalar valid; written so because Triton's interpreter broadcasts no bool."""
    return tl.where(valid, mask.to(tl.int32), 0) != 0


@triton.jit
def locate(
    pid, n_groups, channels_per_group, blocks_per_group,
    D_STATE: tl.constexpr, WHOLE: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What program ``pid`` works on.

    Returns (rest of pid, group, block in group, d [BLOCK_D], mask of d, n [NP], mask of n). A block of channels
    never crosses a group, so that one row of B and C serves all of it. WHOLE says that blocks divide a
    group evenly; masks that are true at compile time cost nothing.
    """
    blocks = n_groups * blocks_per_group
    rest = (pid // blocks).to(tl.int64)
    block = pid % blocks
    group = block // blocks_per_group
    block = block % blocks_per_group
    in_group = block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, NP)
    d = group * channels_per_group + in_group
    in_d = tl.full([BLOCK_D], True, tl.int1) if WHOLE else in_group < channels_per_group
    in_n = tl.full([NP], True, tl.int1) if NP == D_STATE else n < D_STATE
    return rest, group, block, d, in_d, n, in_n
