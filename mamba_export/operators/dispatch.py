"""What both operators share: definition, choice of implementation, checks of tensors, autocast."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from mamba_export.contract import DOMAIN
from mamba_export.operators import native

BACKEND_VARIABLE = "MAMBA_EXPORT_BACKEND"
"""Environment variable that forces one implementation: auto, reference, cpu, native or triton."""

_BACKENDS = ("auto", "reference", "cpu", "native", "triton")

_FORCED: ContextVar[str | None] = ContextVar("mamba_export_forced", default=None)

_LIBRARY = torch.library.Library(DOMAIN, "FRAGMENT")
"""Holds the operators: they are withdrawn when it is collected."""


def define_operator(name: str, implementation: Callable, fake: Callable) -> None:
    """Define ``mamba_export::name``, with the schema that the implementation's annotations give.

    As ``torch.library.custom_op`` does, without the check for aliased outputs that it makes at each call:
    that takes 3 us, and a decoded token makes two calls a layer. ``opcheck`` in the tests looks for them.

    Args:
        name: of the operator.
        implementation: returns new tensors and changes none; called for every device.
        fake: returns empty tensors of the same shapes, dtypes and devices.
    """
    schema = torch.library.infer_schema(implementation, mutates_args=())
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{DOMAIN}::{name}", fake, lib=_LIBRARY)


@contextlib.contextmanager
def forced(backend: str) -> Iterator[None]:
    """Context in which every operator runs one implementation, whatever is set and installed.

    ``verify`` computes its truth so: ``forced("reference")`` shares no code with the kernels that it judges.
    It holds for this thread alone.

    Args:
        backend: what ``choose_backend`` returns inside: "native", "triton", "cpu" or "reference".
    """
    token = _FORCED.set(backend)
    try:
        yield
    finally:
        _FORCED.reset(token)


def choose_backend(tensor: Tensor, *, native_takes: bool = True) -> str:
    """Implementation for tensors like ``tensor``: "native", "triton", "cpu" or "reference".

    Inside ``forced`` that one; else the one that the environment variable ``MAMBA_EXPORT_BACKEND`` names. The
    default is the first that takes the device and dtype: the compiled kernels; on a GPU Triton; the
    vectorised path ("cpu"), which is plain PyTorch and runs on every device and in float64.

    Args:
        tensor: the input that the others follow in device and dtype.
        native_takes: False for what the compiled kernels do not compute, gradients for one. The next
            implementation is then taken, even where the variable forces "native".

    Raises:
        ValueError: the variable holds an unknown name, forces an implementation that is not installed, or
            forces one on a tensor that it cannot take.
    """
    if (decided := _FORCED.get()) is not None:
        return decided
    wanted = os.environ.get(BACKEND_VARIABLE, "auto")
    if wanted == "auto":
        if native_takes and not _why_not_native(tensor):
            return "native"
    elif wanted == "native":
        if why := _why_not_native(tensor):
            raise ValueError(f"{BACKEND_VARIABLE}=native: {why}")
        if native_takes:
            return "native"
    elif wanted == "triton":
        if not _triton_takes(tensor):
            raise ValueError(
                f"{BACKEND_VARIABLE}=triton needs Triton and CUDA tensors of fp32, fp16 or bf16; "
                f"got {tensor.dtype} on {tensor.device}"
            )
        return "triton"
    elif wanted in _BACKENDS:
        return wanted
    else:
        raise ValueError(
            f"{BACKEND_VARIABLE}={wanted!r} is unknown: use one of {', '.join(_BACKENDS)}"
        )
    return "triton" if _triton_takes(tensor) else "cpu"


def _why_not_native(tensor: Tensor) -> str:
    if tensor.dtype not in native.DTYPES:
        return f"the compiled kernels take fp32, fp16 and bf16; got {tensor.dtype}"
    return native.why_not_on(tensor.device)


def _triton_takes(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype in native.DTYPES and _triton_present()


@lru_cache(maxsize=1)
def _triton_present() -> bool:
    return find_spec("triton") is not None


def expect(
    op: str,
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise ValueError unless ``tensor`` has exactly this shape and dtype, on this device."""
    if tensor.shape != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    if tensor.dtype != dtype:
        raise ValueError(f"{op}: {name} is {tensor.dtype}, expected {dtype}")
    if tensor.device != device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device} and the sequence on {device}: move them to one device"
        )


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
    op = getattr(getattr(torch.ops, DOMAIN), op_name).default
    for device_type in ("cpu", "cuda"):
        key = f"Autocast{device_type.upper()}"

        def run(*args, _device_type: str = device_type, _key: str = key):
            excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key))
            dtype = torch.get_autocast_dtype(_device_type)
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                return op(*adapt(dtype, *args))

        _LIBRARY.impl(op_name, run, key)


def cast_low(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in the autocast dtype, except float64, which autocast leaves alone."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
