"""The compiled CPU kernels for torch tensors: forward passes of both operators.

``pip install`` compiles ``plugins/kernels`` into ``mamba_export/lib/libmamba_export_kernels.so``; its C
interface (``mamba_kernels.h``) is called here through ctypes, which lets go of Python's lock meanwhile. The
library is optional: without it, ``dispatch`` takes the vectorised path. Gradients are that path's as well.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mamba_export.files import installed_library

LIBRARY_VARIABLE = "MAMBA_EXPORT_KERNELS"
"""Environment variable: the library to load instead of the installed one, or ``none`` for no library."""

LIBRARY_FILE = "libmamba_export_kernels.so"

MOST_TAPS = 16
"""Largest d_conv that the compiled convolution takes."""

_VERSION = 1  # MAMBA_KERNELS_VERSION
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # mamba_dtype
_OK = 0  # mamba_status


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


@dataclass(frozen=True)
class Library:
    """The loaded library: its file, its C functions, and the address of its parallel-for."""

    path: Path
    functions: ctypes.CDLL
    parallel_for: int

    @property
    def instruction_set(self) -> str:
        """Instruction set that its kernels use on this machine: "avx512", "avx2" or "baseline"."""
        return self.functions.mamba_cpu_instruction_set().decode()


def _declare(path: Path, functions: ctypes.CDLL) -> Library:
    functions.mamba_kernels_version.argtypes = []
    functions.mamba_kernels_version.restype = ctypes.c_int
    for text in (functions.mamba_cpu_instruction_set, functions.mamba_last_error):
        text.argtypes = []
        text.restype = ctypes.c_char_p
    for operator, params in (
        (functions.mamba_selective_scan_cpu, SelectiveScanParams),
        (functions.mamba_causal_conv1d_cpu, CausalConv1dParams),
    ):
        operator.argtypes = [ctypes.POINTER(params), ctypes.c_void_p, ctypes.c_void_p]
        operator.restype = ctypes.c_int
    parallel_for = ctypes.cast(functions.mamba_thread_pool_parallel_for, ctypes.c_void_p).value
    assert parallel_for is not None
    return Library(path, functions, parallel_for)


@lru_cache(maxsize=8)
def _load(setting: str) -> Library | str:
    """The library for this value of the environment variable, or one line about why there is none."""
    if setting == "none":
        return f"the compiled kernels are switched off by {LIBRARY_VARIABLE}=none"
    path = Path(setting) if setting else installed_library(LIBRARY_FILE)
    if path is None:
        return (
            f"{LIBRARY_FILE} is not installed with mamba_export: "
            "a C++ compiler and `pip install .` in its sources build it"
        )
    if not path.is_file():
        return f"{LIBRARY_VARIABLE}={setting} is not a file"
    try:
        library = _declare(path, ctypes.CDLL(str(path.resolve())))
        version = library.functions.mamba_kernels_version()
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded: {error}"
    if version != _VERSION:
        return (
            f"{path} has version {version} of the kernels' interface, and this mamba_export needs "
            f"{_VERSION}: install mamba_export again"
        )
    return library


def _setting() -> str:
    return os.environ.get(LIBRARY_VARIABLE, "")


def available() -> bool:
    """Whether the compiled kernels can be used in this process."""
    return isinstance(_load(_setting()), Library)


def why_absent() -> str:
    """One line about why ``available`` is False; empty where it is True."""
    loaded = _load(_setting())
    return loaded if isinstance(loaded, str) else ""


def library() -> Library:
    """The loaded library.

    Raises:
        ValueError: there is none; the message says why.
    """
    loaded = _load(_setting())
    if isinstance(loaded, str):
        raise ValueError(loaded)
    return loaded


def _expect_memory(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless every tensor is a plain one in this process's memory."""
    for name, tensor in tensors.items():
        if tensor is not None and (
            tensor.device.type != "cpu" or tensor.layout is not torch.strided
        ):
            raise ValueError(
                f"{op}: {name} is on {tensor.device} ({tensor.layout}), expected a dense CPU tensor"
            )


def _sequence(tensor: Tensor, keep: list[Tensor]) -> Sequence:
    """Describe (batch, length, ...) without a copy where the dimensions after the second are dense.

    ``keep`` collects what must live until the call is over.
    """
    dense, stride = True, 1
    for size, step in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
        dense &= size == 1 or step == stride
        stride *= size
    if not dense:
        tensor = tensor.contiguous()
    keep.append(tensor)
    return Sequence(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _pointer(tensor: Tensor, keep: list[Tensor]) -> int:
    tensor = tensor.contiguous()
    keep.append(tensor)
    return tensor.data_ptr()


def _call(function: str, params: ctypes.Structure) -> None:
    kernels = library()
    threads = ctypes.c_int64(torch.get_num_threads())
    status = getattr(kernels.functions, function)(
        ctypes.byref(params), kernels.parallel_for, ctypes.addressof(threads)
    )
    if status != _OK:
        raise ValueError(kernels.functions.mamba_last_error().decode())


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

    Shapes and dtypes must have been checked, as the operator does: the kernel reads what they say. u,
    delta, z may have any strides over batch and length, B and C as well; a copy is made of a tensor
    whose channels (or groups and states) are not contiguous.

    Raises:
        ValueError: no library, a tensor that is not in CPU memory, or a size that the kernel refuses.
    """
    _expect_memory(
        "selective_scan", u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias,
        initial_state=initial_state,
    )  # fmt: skip
    y = u.new_empty(u.shape)
    last_state = u.new_empty(initial_state.shape, dtype=torch.float32)
    if u.numel() == 0:
        return y, last_state.copy_(initial_state)
    keep: list[Tensor] = []
    params = SelectiveScanParams(
        batch=u.shape[0],
        length=u.shape[1],
        d_inner=u.shape[2],
        d_state=A.shape[1],
        n_groups=B.shape[2],
        dtype=_DTYPES[u.dtype],
        delta_softplus=delta_softplus,
        reverse=reverse,
        u=_sequence(u, keep),
        delta=_sequence(delta, keep),
        z=Sequence() if z is None else _sequence(z, keep),
        B=_sequence(B, keep),
        C=_sequence(C, keep),
        A=_pointer(A, keep),
        D=_pointer(D, keep),
        delta_bias=_pointer(delta_bias, keep),
        initial_state=_pointer(initial_state, keep),
        y=y.data_ptr(),
        last_state=last_state.data_ptr(),
    )
    _call("mamba_selective_scan_cpu", params)
    return y, last_state


def causal_conv1d_forward(
    x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Forward pass; arguments and results as in ``causal_conv1d_reference``, in fp32, fp16 or bf16.

    Shapes and dtypes must have been checked, as the operator does: the kernel reads what they say. x may
    have any strides over batch and length; it is copied where its channels are not contiguous.

    Raises:
        ValueError: no library, a tensor that is not in CPU memory, or a size that the kernel refuses.
    """
    _expect_memory("causal_conv1d", x=x, weight=weight, bias=bias, initial_state=initial_state)
    y = x.new_empty(x.shape)
    last_state = x.new_empty(initial_state.shape)
    if x.numel() == 0:
        return y, last_state.copy_(initial_state)
    keep: list[Tensor] = []
    params = CausalConv1dParams(
        batch=x.shape[0],
        length=x.shape[1],
        channels=x.shape[2],
        d_conv=weight.shape[1],
        dtype=_DTYPES[x.dtype],
        silu=silu,
        reverse=reverse,
        x=_sequence(x, keep),
        weight=_pointer(weight, keep),
        bias=_pointer(bias, keep),
        initial_state=_pointer(initial_state, keep),
        y=y.data_ptr(),
        last_state=last_state.data_ptr(),
    )
    _call("mamba_causal_conv1d_cpu", params)
    return y, last_state
