"""The compiled kernels for torch tensors, on CPUs and NVIDIA GPUs: forward passes of both operators.

The C interface of ``kernel_library`` is called through ctypes, which lets go of Python's lock meanwhile. On
a GPU the work is queued on PyTorch's current stream, so that CUDA graphs capture it. Gradients need nothing
of the forward but its inputs; another implementation computes them (see ``dispatch``).

A decoded token makes two calls a layer, so what Python does here counts: a params struct is packed as
bytes (a third of the time of filling a ctypes structure), and a tensor's properties are read once.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from typing import Any, NoReturn

import torch
from torch import Tensor

from mamba_export.operators.kernel_library import (
    INVALID,
    LIBRARY_FILE,
    LIBRARY_VARIABLE,
    Library,
    available,
    library,
    why_absent,
    why_not_on,
)

__all__ = [
    "DTYPES",
    "LIBRARY_FILE",
    "LIBRARY_VARIABLE",
    "CausalConv1dParams",
    "SelectiveScanParams",
    "Sequence",
    "available",
    "causal_conv1d_forward",
    "library",
    "selective_scan_forward",
    "why_absent",
    "why_not_on",
]

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""``mamba_dtype`` of each dtype that the kernels take."""


class Sequence(ctypes.Structure):
    """``mamba_sequence``: (batch, length, channels), channels contiguous, strides in elements."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("step_stride", ctypes.c_int64),
    )


class SelectiveScanParams(ctypes.Structure):
    """``mamba_selective_scan_params``."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("d_inner", ctypes.c_int64),
        ("d_state", ctypes.c_int64),
        ("n_groups", ctypes.c_int64),
        ("dtype", ctypes.c_int),
        ("delta_softplus", ctypes.c_int),
        ("reverse", ctypes.c_int),
        ("u", Sequence),
        ("delta", Sequence),
        ("z", Sequence),
        ("B", Sequence),
        ("C", Sequence),
        ("A", ctypes.c_void_p),
        ("D", ctypes.c_void_p),
        ("delta_bias", ctypes.c_void_p),
        ("initial_state", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("last_state", ctypes.c_void_p),
    )


class CausalConv1dParams(ctypes.Structure):
    """``mamba_causal_conv1d_params``."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("d_conv", ctypes.c_int64),
        ("dtype", ctypes.c_int),
        ("silu", ctypes.c_int),
        ("reverse", ctypes.c_int),
        ("x", Sequence),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("initial_state", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("last_state", ctypes.c_void_p),
    )


def packer(structure: type[ctypes.Structure]) -> struct.Struct:
    """What packs a structure's numbers, nested ones in line, into bytes of its C layout."""
    letters = {ctypes.c_int64: "q", ctypes.c_int: "i", ctypes.c_void_p: "P"}

    def codes(structure: type[ctypes.Structure]) -> str:
        kinds: list[Any] = [field[1] for field in structure._fields_]
        return "".join(letters.get(kind) or codes(kind) for kind in kinds)

    return struct.Struct("@" + codes(structure))


_SCAN = packer(SelectiveScanParams)
_CONV = packer(CausalConv1dParams)


def _dense(tensor: Tensor) -> Tensor:
    """(batch, length, ...) as it is where the dimensions after the second are dense, else a copy."""
    if tensor.is_contiguous():
        return tensor
    stride = 1
    for size, step in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
        if size != 1 and step != stride:
            return tensor.contiguous()
        stride *= size
    return tensor


def _place(tensor: Tensor) -> tuple[int, int, int]:
    """The fields of a ``mamba_sequence``."""
    strides = tensor.stride()
    return tensor.data_ptr(), strides[0], strides[1]


def _current(device: torch.device) -> contextlib.AbstractContextManager:
    """Context in which ``device`` is CUDA's current one; entering torch's own always costs 2 us."""
    if torch.cuda.current_device() == device.index:
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def _stream(device: torch.device) -> int:
    """The ``cudaStream_t`` of PyTorch's current stream, as Triton asks for it: without a Stream object."""
    return torch._C._cuda_getCurrentRawStream(device.index)


def _fail(kernels: Library, status: int) -> NoReturn:
    """Raise for a status that is not MAMBA_OK: the thread's last error says what happened."""
    text = kernels.functions.mamba_last_error().decode()
    raise ValueError(text) if status == INVALID else RuntimeError(text)


def selective_scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    initial_state: Tensor,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Forward pass; arguments and results as in ``selective_scan_reference``, in fp32, fp16 or bf16.

    Shapes, dtypes and devices must have been checked, as the operator does: the kernel reads what they
    say. u, delta, z may have any strides over batch and length, B and C as well; a copy is made of a
    tensor whose channels (or groups and states) are not contiguous.

    Raises:
        ValueError: no library, or a size that the kernel refuses.
        RuntimeError: CUDA refused the launch, or the library has no kernels for this GPU.
    """
    kernels = library()
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    last_state = torch.empty_like(initial_state, memory_format=torch.contiguous_format)
    batch, length, d_inner = u.shape
    if batch == 0 or d_inner == 0:
        return y, last_state.copy_(initial_state)
    # The names hold what was copied until the call is over.
    u, delta, B, C = _dense(u), _dense(delta), _dense(B), _dense(C)
    A, D, delta_bias = A.contiguous(), D.contiguous(), delta_bias.contiguous()
    initial_state = initial_state.contiguous()
    if z is not None:
        z = _dense(z)
    params = _SCAN.pack(
        batch, length, d_inner, A.shape[1], B.shape[2], DTYPES[u.dtype], delta_softplus, reverse,
        *_place(u), *_place(delta), *((0, 0, 0) if z is None else _place(z)), *_place(B), *_place(C),
        A.data_ptr(), D.data_ptr(), delta_bias.data_ptr(), initial_state.data_ptr(),
        y.data_ptr(), last_state.data_ptr(),
    )  # fmt: skip
    functions = kernels.functions
    if u.is_cuda:
        device = u.device
        with _current(device):
            size = functions.mamba_selective_scan_cuda_workspace(params)
            workspace = torch.empty(size, dtype=torch.uint8, device=device) if size else None
            status = functions.mamba_selective_scan_cuda(
                params, workspace.data_ptr() if workspace is not None else None, _stream(device)
            )
    else:
        threads = ctypes.c_int64(torch.get_num_threads())
        status = functions.mamba_selective_scan_cpu(
            params, kernels.parallel_for, ctypes.byref(threads)
        )
    if status:
        _fail(kernels, status)
    return y, last_state


def causal_conv1d_forward(
    x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Forward pass; arguments and results as in ``causal_conv1d_reference``, in fp32, fp16 or bf16.

    Shapes, dtypes and devices must have been checked, as the operator does: the kernel reads what they
    say. x may have any strides over batch and length; it is copied where its channels are not contiguous.

    Raises:
        ValueError: no library, or a size that the kernel refuses.
        RuntimeError: CUDA refused the launch, or the library has no kernels for this GPU.
    """
    kernels = library()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last_state = torch.empty_like(initial_state, memory_format=torch.contiguous_format)
    batch, length, channels = x.shape
    if batch == 0 or channels == 0:
        return y, last_state.copy_(initial_state)
    x, weight, bias = _dense(x), weight.contiguous(), bias.contiguous()
    initial_state = initial_state.contiguous()
    params = _CONV.pack(
        batch, length, channels, weight.shape[1], DTYPES[x.dtype], silu, reverse, *_place(x),
        weight.data_ptr(), bias.data_ptr(), initial_state.data_ptr(),
        y.data_ptr(), last_state.data_ptr(),
    )  # fmt: skip
    functions = kernels.functions
    if x.is_cuda:
        device = x.device
        with _current(device):
            status = functions.mamba_causal_conv1d_cuda(params, _stream(device))
    else:
        threads = ctypes.c_int64(torch.get_num_threads())
        status = functions.mamba_causal_conv1d_cpu(
            params, kernels.parallel_for, ctypes.byref(threads)
        )
    if status:
        _fail(kernels, status)
    return y, last_state
