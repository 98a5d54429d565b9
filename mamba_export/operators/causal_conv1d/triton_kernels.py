"""Causal depthwise convolution on NVIDIA GPUs in Triton, forward and backward: the training path.

The definition is ``causal_conv1d_reference`` in ``reference``. With K = d_conv, time in the order of the
walk, and the initial state as the steps -(K - 1) .. -1 of x:

.. code-block:: text

    pre_t = bias + sum_k weight[k] x_{t - (K - 1) + k}        y_t = silu(pre_t)

Backward: ``dpre_t = dy_t silu'(pre_t)``, then for every t from -(K - 1) on, initial state included,

.. code-block:: text

    dx_t = sum_k weight[k] dpre_{t + (K - 1) - k}  (+ dlast_state on the last K - 1 steps)
    dweight[k] = sum_t dpre_t x_{t - (K - 1) + k}             dbias = sum_t dpre_t

The first kernel writes dpre (fp32) and partial sums of dweight and dbias, the second one dx and the initial
state's gradient. Keeping dpre costs one pass over memory; without it each dx would recompute K of them.
Everything here is bound by memory: taps re-read neighbouring rows from the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_T = 32
"""Steps of a tile."""
BLOCK_D = 64
"""Channels of a tile: 128 bytes of a 16-bit row."""
MAX_PARTIALS = 2048
"""Most partial sums of dweight; longer inputs give a program several tiles."""

_LOG2E = tl.constexpr(1.4426950408889634)
_SIZES = [
    "length",
    "tiles",
    "tiles_a_program",
    "initial_stride_b",
    "initial_stride_d",
    "initial_stride_k",
]
"""Arguments that change from call to call: specialising on them would only compile again."""


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * _LOG2E))


@triton.jit
def _row(t, length, REVERSE: tl.constexpr):
    """Position in memory of step t of the walk; 64 bits, because it is about to meet a stride."""
    if REVERSE:
        t = length - 1 - t
    return t.to(tl.int64)


@triton.jit
def _steps(x_ptr, t, d, in_d, length, x_stride_l, REVERSE: tl.constexpr):
    """x at steps t [T] and channels d [D] as fp32 [T, D]; zero before step 0 and past the end."""
    return tl.load(
        x_ptr + _row(t, length, REVERSE)[:, None] * x_stride_l + d[None, :],
        mask=((t >= 0) & (t < length))[:, None] & in_d[None, :],
        other=0.0,
    ).to(tl.float32)


@triton.jit
def _initial_steps(initial_ptr, t, d, in_d, initial_stride_d, initial_stride_k, K: tl.constexpr):
    """The initial state's value at steps t [T] as fp32 [T, D]; zero from step 0 on.

    A separate load under a branch: of all tiles, only the first of a sequence needs it.
    """
    d = d.to(tl.int64)
    return tl.load(
        initial_ptr + d[None, :] * initial_stride_d + (t + (K - 1))[:, None] * initial_stride_k,
        mask=((t < 0) & (t >= 1 - K))[:, None] & in_d[None, :],
        other=0.0,
    ).to(tl.float32)


@triton.jit(do_not_specialize=_SIZES)
def _forward_kernel(
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
        y += w[None, :] * _steps(x_ptr, t - (K - 1) + k, d, in_d, length, x_stride_l, REVERSE)
    if start == 0:
        for k in tl.static_range(K - 1):
            w = tl.load(weight_ptr + d * K + k, mask=in_d, other=0.0)
            y += w[None, :] * _initial_steps(
                initial_ptr, t - (K - 1) + k, d, in_d, initial_stride_d, initial_stride_k, K
            )
    if SILU:
        y = y * _sigmoid(y)
    y_ptr += b * length * channels
    tl.store(
        y_ptr + _row(t, length, REVERSE)[:, None] * channels + d[None, :],
        y,
        mask=(t < length)[:, None] & in_d[None, :],
    )


@triton.jit(do_not_specialize=_SIZES)
def _backward_pre_kernel(
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
            dy_ptr + _row(t, length, REVERSE)[:, None] * dy_stride_l + d[None, :], mask=here, other=0.0
        ).to(tl.float32)  # fmt: skip
        if SILU:
            pre = tl.zeros([BLOCK_T, BLOCK_D], tl.float32) + bias[None, :]
            for k in tl.static_range(K):
                w = tl.load(weight_ptr + d * K + k, mask=in_d, other=0.0)
                pre += w[None, :] * _steps(
                    x_ptr, t - (K - 1) + k, d, in_d, length, x_stride_l, REVERSE
                )
            if start == 0:
                for k in tl.static_range(K - 1):
                    w = tl.load(weight_ptr + d * K + k, mask=in_d, other=0.0)
                    pre += w[None, :] * _initial_steps(
                        initial_ptr, t - (K - 1) + k, d, in_d, initial_stride_d, initial_stride_k, K
                    )
            s = _sigmoid(pre)
            dpre = dpre * s * (1.0 + pre * (1.0 - s))
        tl.store(dpre_ptr + t.to(tl.int64)[:, None] * channels + d[None, :], dpre, mask=here)
        dbias += tl.sum(dpre, axis=0)
        for k in tl.static_range(K):
            x = _steps(x_ptr, t - (K - 1) + k, d, in_d, length, x_stride_l, REVERSE)
            dweight += tl.where(taps == k, 1.0, 0.0)[None, :] * tl.sum(dpre * x, axis=0)[:, None]
        if start == 0:
            for k in tl.static_range(K - 1):
                x = _initial_steps(
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


@triton.jit(do_not_specialize=_SIZES)
def _backward_input_kernel(
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
        dx_ptr + _row(t, length, REVERSE)[:, None] * channels + d[None, :],
        dx,
        mask=((t >= 0) & (t < length))[:, None] & in_d[None, :],
    )
    tl.store(
        dinitial_ptr + d[None, :] * (K - 1) + (t + (K - 1))[:, None],
        dx,
        mask=(t < 0)[:, None] & in_d[None, :],
    )


def _unit_stride(x: Tensor) -> Tensor:
    """x itself if its last dimension is dense, as slices of a projection are; otherwise a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _check(x: Tensor, weight: Tensor, initial_state: Tensor) -> None:
    """Refuse what would read out of bounds; the dispatcher has checked the rest of the contract."""
    batch, _, channels = x.shape
    if weight.shape[0] != channels or weight.shape[1] < 2:
        raise ValueError(
            f"weight must be (channels = {channels}, d_conv >= 2), not {tuple(weight.shape)}"
        )
    expected = (batch, channels, weight.shape[1] - 1)
    if initial_state.shape != expected:
        raise ValueError(f"initial_state must be {expected}, not {tuple(initial_state.shape)}")


def _device(x: Tensor):
    """Context in which launches go to x's device; CPU tensors are the Triton interpreter's."""
    return torch.cuda.device(x.device if x.is_cuda else -1)


def causal_conv1d_forward(
    x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution.

    Args:
        x: (batch, length, channels), fp32, fp16 or bf16, any strides.
        weight: (channels, d_conv) fp32; the last tap multiplies the current step.
        bias: (channels,) fp32.
        initial_state: (batch, channels, d_conv - 1) in x's dtype, oldest step first.
        silu: apply SiLU.
        reverse: walk from the last step to the first.

    Returns:
        y (batch, length, channels) and last_state (batch, channels, d_conv - 1), both in x's dtype.
    """
    _check(x, weight, initial_state)
    batch, length, channels = x.shape
    kept = weight.shape[1] - 1
    newest = x[:, :kept].flip(1) if reverse else x[:, max(0, length - kept) :]
    last_state = newest.transpose(1, 2)
    if length < kept:
        last_state = torch.cat([initial_state[:, :, length:], last_state], dim=2)
    y = torch.empty((batch, length, channels), dtype=x.dtype, device=x.device)
    if y.numel():
        x = _unit_stride(x)
        tiles = triton.cdiv(length, BLOCK_T)
        with _device(x):
            _forward_kernel[(batch * tiles, triton.cdiv(channels, BLOCK_D))](
                x, weight.contiguous(), bias.contiguous(), initial_state, y,
                *x.stride()[:2], *initial_state.stride(), length, channels, tiles,
                K=kept + 1, SILU=silu, REVERSE=reverse, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D,
            )  # fmt: skip
    # A clone, because an operator's output must never be a view of its input.
    return y, last_state.clone(memory_format=torch.contiguous_format)


def causal_conv1d_backward(
    dy: Tensor,
    dlast_state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_state: Tensor,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`causal_conv1d_forward`.

    Args:
        dy: (batch, length, channels), gradient of y, any strides.
        dlast_state: (batch, channels, d_conv - 1), gradient of last_state.
        others: as in the forward.

    Returns:
        Gradients of x, weight, bias and initial_state, each with its input's shape and dtype.
    """
    _check(x, weight, initial_state)
    batch, length, channels = x.shape
    taps = weight.shape[1]
    if x.numel() == 0:
        raise ValueError(f"no gradient of an empty convolution: x {tuple(x.shape)}")
    dy, x = _unit_stride(dy), _unit_stride(x)
    weight, bias = weight.contiguous(), bias.contiguous()
    blocks = triton.cdiv(channels, BLOCK_D)
    tiles = triton.cdiv(length, BLOCK_T)
    tiles_a_program = triton.cdiv(batch * tiles, MAX_PARTIALS)
    programs = triton.cdiv(tiles, tiles_a_program)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    dpre = empty(batch, length, channels)
    dweight = empty(batch * programs, channels, taps)
    dbias = empty(batch * programs, channels)
    dx = empty(batch, length, channels, dtype=x.dtype)
    dinitial = empty(batch, channels, taps - 1, dtype=initial_state.dtype)
    tile = dict(REVERSE=reverse, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D)
    with _device(x):
        _backward_pre_kernel[(batch * programs, blocks)](
            dy, x, weight, bias, initial_state, dpre, dweight, dbias,
            *dy.stride()[:2], *x.stride()[:2], *initial_state.stride(),
            length, channels, programs, tiles_a_program,
            K=taps, KP=triton.next_power_of_2(taps), SILU=silu, **tile,
        )  # fmt: skip
        tiles = triton.cdiv(length + taps - 1, BLOCK_T)
        _backward_input_kernel[(batch * tiles, blocks)](
            dpre, weight, dlast_state.contiguous(), dx, dinitial, length, channels, tiles, K=taps, **tile,
        )  # fmt: skip
    return dx, dweight.sum(0), dbias.sum(0), dinitial
