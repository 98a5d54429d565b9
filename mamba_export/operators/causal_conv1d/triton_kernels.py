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
from torch import Tensor

from mamba_export.operators.causal_conv1d.triton_backward import (
    backward_input_kernel,
    backward_pre_kernel,
)
from mamba_export.operators.causal_conv1d.triton_forward import forward_kernel
from mamba_export.operators.triton_launch import on_device, unit_stride

BLOCK_T = 32
"""Steps of a tile."""
BLOCK_D = 64
"""Channels of a tile: 128 bytes of a 16-bit row."""
MAX_PARTIALS = 2048
"""Most partial sums of dweight; longer inputs give a program several tiles."""


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
        x = unit_stride(x)
        tiles = triton.cdiv(length, BLOCK_T)
        with on_device(x):
            forward_kernel[(batch * tiles, triton.cdiv(channels, BLOCK_D))](
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
    dy, x = unit_stride(dy), unit_stride(x)
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
    with on_device(x):
        backward_pre_kernel[(batch * programs, blocks)](
            dy, x, weight, bias, initial_state, dpre, dweight, dbias,
            *dy.stride()[:2], *x.stride()[:2], *initial_state.stride(),
            length, channels, programs, tiles_a_program,
            K=taps, KP=triton.next_power_of_2(taps), SILU=silu, **tile,
        )  # fmt: skip
        tiles = triton.cdiv(length + taps - 1, BLOCK_T)
        backward_input_kernel[(batch * tiles, blocks)](
            dpre, weight, dlast_state.contiguous(), dx, dinitial, length, channels, tiles, K=taps, **tile,
        )  # fmt: skip
    return dx, dweight.sum(0), dbias.sum(0), dinitial
