"""``torch.ops.mamba_export.causal_conv1d``: depthwise causal convolution with state, as a torch custom op."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from mamba_export.contract import DOMAIN
from mamba_export.operators import dispatch, native
from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.dtypes import accumulation_dtype

_OP = "causal_conv1d"
_BACKWARD = "causal_conv1d_backward"


def _check(x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor) -> None:
    dispatch.expect_sequence(_OP, "x", x)
    sequence, dtype, device = x.shape, x.dtype, x.device
    batch, _, channels = sequence
    if weight.dim() != 2 or weight.shape[1] == 0:
        raise ValueError(
            f"{_OP}: weight has shape {tuple(weight.shape)}, expected (channels, d_conv)"
        )
    taps = weight.shape[1]
    acc = accumulation_dtype(dtype)
    expect = dispatch.expect
    expect(_OP, "weight", weight, (channels, taps), acc, device)
    expect(_OP, "bias", bias, (channels,), acc, device)
    expect(_OP, "initial_state", initial_state, (batch, channels, taps - 1), dtype, device)


def _kernels(backend: str) -> ModuleType:
    if backend == "native":
        return native
    if backend == "triton":
        from mamba_export.operators.causal_conv1d import triton_kernels

        return triton_kernels
    from mamba_export.operators.causal_conv1d import cpu

    return cpu


def _causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_state: Tensor,
    silu: bool = True,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    _check(x, weight, bias, initial_state)
    backend = dispatch.choose_backend(x, native_takes=weight.shape[1] <= native.MOST_TAPS)
    forward = (
        causal_conv1d_reference
        if backend == "reference"
        else _kernels(backend).causal_conv1d_forward
    )
    return forward(x, weight, bias, initial_state, silu, reverse)


def _fake(x, weight, bias, initial_state, silu=True, reverse=False):
    return x.new_empty(x.shape), initial_state.new_empty(initial_state.shape)


def _causal_conv1d_backward(
    dy: Tensor,
    dlast_state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_state: Tensor,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backend = dispatch.choose_backend(x, native_takes=False)  # what is compiled has no gradients
    return _kernels(backend).causal_conv1d_backward(
        dy, dlast_state, x, weight, bias, initial_state, silu, reverse
    )


def _fake_backward(dy, dlast_state, x, weight, bias, initial_state, silu, reverse):
    return tuple(t.new_empty(t.shape) for t in (x, weight, bias, initial_state))


dispatch.define_operator(_OP, _causal_conv1d, _fake)
dispatch.define_operator(_BACKWARD, _causal_conv1d_backward, _fake_backward)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy, dlast_state):
    grads = torch.ops.mamba_export.causal_conv1d_backward(
        dy, dlast_state, *ctx.saved_tensors, ctx.silu, ctx.reverse
    )
    return *grads, None, None


torch.library.register_autograd(f"{DOMAIN}::{_OP}", _backward, setup_context=_setup_context)


def _adapt_autocast(dtype, x, weight, bias, initial_state, *flags):
    acc = accumulation_dtype(x.dtype)
    low = dispatch.cast_low
    return low(x, dtype), weight.to(acc), bias.to(acc), low(initial_state, dtype), *flags


dispatch.register_autocast(_OP, _adapt_autocast)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    silu: bool = True,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution; calls ``torch.ops.mamba_export.causal_conv1d``.

    Args:
        x: (batch, length, channels), fp32, fp16, bf16 (or float64).
        weight: (channels, d_conv) fp32.
        bias: (channels,) fp32, or None.
        initial_state: (batch, channels, d_conv - 1) in x's dtype, or None for zeros.
        silu: apply SiLU to the result.
        reverse: walk from the last step to the first.

    Returns:
        y (batch, length, channels) and last_state (batch, channels, d_conv - 1), in x's dtype.

    Raises:
        ValueError: a shape or dtype that the contract does not allow; the message names the tensor.
    """
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    if initial_state is None:
        initial_state = x.new_zeros((x.shape[0], x.shape[2], weight.shape[1] - 1))
    return torch.ops.mamba_export.causal_conv1d(x, weight, bias, initial_state, silu, reverse)
