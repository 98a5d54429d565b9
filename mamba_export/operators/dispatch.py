"""Which implementation computes a call: compiled kernels, Triton, vectorised PyTorch, or the reference."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache

from torch import Tensor

from mamba_export import given, requirements
from mamba_export.errors import ImplementationError
from mamba_export.operators import native

BACKEND_VARIABLE = "MAMBA_EXPORT_BACKEND"
"""Environment variable that forces one implementation: auto, reference, cpu, native or triton."""

_BACKENDS = ("auto", "reference", "cpu", "native", "triton")

_FORCED: ContextVar[str | None] = ContextVar("mamba_export_forced", default=None)


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
        ImplementationError: the variable holds an unknown name, forces an implementation that is not
            installed, or forces one on a tensor that it cannot take.
    """
    if (decided := _FORCED.get()) is not None:
        return decided
    wanted = os.environ.get(BACKEND_VARIABLE, "auto")
    if wanted == "auto":
        if native_takes and not _why_not_native(tensor):
            return "native"
    elif wanted == "native":
        if why := _why_not_native(tensor):
            raise ImplementationError(f"{BACKEND_VARIABLE}=native: {why}")
        if native_takes:
            return "native"
    elif wanted == "triton":
        if not _triton_takes(tensor):
            raise ImplementationError(
                f"{BACKEND_VARIABLE}=triton needs Triton and CUDA tensors of fp32, fp16 or bf16; "
                f"got {tensor.dtype} on {tensor.device}"
            )
        return "triton"
    elif wanted in _BACKENDS:
        return wanted
    else:
        raise ImplementationError(
            f"{BACKEND_VARIABLE} is {given.shown(wanted)}: use one of {', '.join(_BACKENDS)}"
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
    return requirements.is_installed("triton")
