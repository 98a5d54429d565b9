"""How the operators' Triton kernels are compiled and launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor


def jit(kernel: Callable[..., Any], specialize: tuple[str, ...] = ()) -> Any:
    """``triton.jit``, compiling again for another divisibility by 16 of those arguments only.

    Sizes and strides change from call to call, and alignment decides the layout of a tile.
    """
    names = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    sizes = [n for n in names if n.islower() or "_stride_" in n]
    return triton.jit(
        kernel,
        do_not_specialize=[n for n in sizes if not n.endswith("_ptr") and n not in specialize],
    )


def unit_stride(x: Tensor) -> Tensor:
    """x itself if its last dimension is dense, as slices of a projection are; otherwise a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def on_device(x: Tensor) -> torch.cuda.device:
    """Context in which launches go to x's device; CPU tensors are the Triton interpreter's."""
    return torch.cuda.device(x.device if x.is_cuda else -1)
