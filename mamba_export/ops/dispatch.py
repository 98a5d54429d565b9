"""What both operators share: choice of backend, shape checks, autocast."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mamba_export.contract import DOMAIN
from mamba_export.ops import native

BACKEND_VARIABLE = "MAMBA_EXPORT_BACKEND"
"""Environment variable that forces one implementation: auto, reference, cpu, native or triton."""

_BACKENDS = ("auto", "reference", "cpu", "native", "triton")
_NATIVE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def choose_backend(tensor: Tensor) -> str:
    """Implementation for tensors like ``tensor``: "native", "triton", "cpu" or "reference".

    The environment variable ``MAMBA_EXPORT_BACKEND`` forces one. The default for fp32, fp16 and bf16 is the
    compiled kernels on a CPU where they are installed, and Triton on a GPU where it is installed; else the
    vectorised path ("cpu"), which is plain PyTorch and runs on every device and in float64.

    Raises:
        ValueError: the variable holds an unknown name, forces an implementation that is not installed, or
            forces one on a tensor that it cannot take.
    """
    forced = os.environ.get(BACKEND_VARIABLE, "auto")
    if forced not in _BACKENDS:
        raise ValueError(
            f"{BACKEND_VARIABLE}={forced!r} is unknown: use one of {', '.join(_BACKENDS)}"
        )
    triton_fits = tensor.is_cuda and tensor.dtype != torch.float64 and _triton_present()
    if forced == "triton" and not triton_fits:
        raise ValueError(
            f"{BACKEND_VARIABLE}=triton needs Triton and CUDA tensors of fp32, fp16 or bf16; "
            f"got {tensor.dtype} on {tensor.device}"
        )
    native_fits = tensor.device.type == "cpu" and tensor.dtype in _NATIVE_DTYPES
    if forced == "native":
        if not native_fits:
            raise ValueError(
                f"{BACKEND_VARIABLE}=native needs CPU tensors of fp32, fp16 or bf16; "
                f"got {tensor.dtype} on {tensor.device}"
            )
        if not native.available():
            raise ValueError(f"{BACKEND_VARIABLE}=native: {native.why_absent()}")
    if forced != "auto":
        return forced
    if triton_fits:
        return "triton"
    return "native" if native_fits and native.available() else "cpu"


def _triton_present() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def expect_shape(op: str, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError unless ``tensor`` has exactly ``shape``."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")


def expect_dtype(op: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError unless ``tensor`` has exactly ``dtype``."""
    if tensor.dtype != dtype:
        raise ValueError(f"{op}: {name} is {tensor.dtype}, expected {dtype}")


def expect_sequence(op: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is a non-empty floating (batch, length, channels) sequence."""
    if tensor.dim() != 3:
        raise ValueError(
            f"{op}: {name} has {tensor.dim()} dimensions, expected (batch, length, channels)"
        )
    if tensor.shape[1] == 0:
        raise ValueError(f"{op}: {name} has length 0; a sequence needs at least one step")
    if not tensor.is_floating_point():
        raise ValueError(f"{op}: {name} is {tensor.dtype}, expected a floating dtype")


def register_autocast(op_name: str, adapt: Callable[..., tuple]) -> None:
    """Make ``mamba_export::op_name`` cast its own inputs under ``torch.autocast``.

    ``adapt(dtype, *args)`` returns the arguments cast. PyTorch's own helper would cast every tensor,
    and so lose the fp32 parameters and state that the contract asks for.
    """
    library = torch.library.Library(DOMAIN, "FRAGMENT")
    _LIBRARIES.append(library)
    op = getattr(getattr(torch.ops, DOMAIN), op_name).default
    for device_type in ("cpu", "cuda"):
        key = f"Autocast{device_type.upper()}"

        def run(*args, _device_type: str = device_type, _key: str = key):
            excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key))
            dtype = torch.get_autocast_dtype(_device_type)
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                return op(*adapt(dtype, *args))

        library.impl(op_name, run, key)


_LIBRARIES: list[torch.library.Library] = []
"""Keeps the registrations alive: a Library withdraws them when it is collected."""


def cast_low(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in the autocast dtype, except float64, which autocast leaves alone."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
