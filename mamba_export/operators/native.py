"""The compiled kernels for torch tensors, on CPUs and NVIDIA GPUs: forward passes of the operators that it has.

The C interface of ``kernel_library`` is called through ctypes, which releases Python's GIL meanwhile. On
a GPU the work is queued on PyTorch's current stream, so that CUDA graphs capture it. Gradients need nothing
of the forward but its inputs; another implementation computes them (see ``dispatch``).

A decoded token makes two calls a layer, so what Python does here counts: a params struct is packed as
bytes (a third of the time of filling a ctypes structure), and a tensor's properties are read once.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from mamba_export import contract
from mamba_export.contract import layout
from mamba_export.contract.spec import Operator, R, S, T
from mamba_export.contract.spec import Tensor as Row
from mamba_export.operators.dtypes import TORCH_DTYPES
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
    "available",
    "compiled",
    "library",
    "why_absent",
    "why_not_on",
]

DTYPES = {TORCH_DTYPES[name]: index for index, name in enumerate(contract.DTYPES)}
"""``mamba_dtype`` of each dtype that the kernels take."""

_FP32 = DTYPES[torch.float32]

_ABSENT = (0, 0, 0)
"""The fields of a ``mamba_sequence`` of an absent input."""


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


def compiled(spec: Operator) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """The compiled kernels' forward pass of an operator: called with its inputs and attributes, in order.

    The row says where each field of the parameter struct comes from, once; a call only reads and packs.

    Shapes, dtypes and devices must have been checked, as the operator does: the kernel reads what they
    say. Inputs that the row calls strided may have any strides over batch and length; a copy is made of
    one whose other dimensions are not dense, and of every other input that is not contiguous.

    Args:
        spec: a row whose kernels the library has, and whose outputs each follow an input.

    Returns:
        A function that returns the outputs, in order, or the one that there is. It raises ValueError where
        there is no library or the kernel refuses a size, and RuntimeError where CUDA refused the launch or
        the library has no kernels for the GPU.
    """
    stem = layout.stem(spec)
    pack = layout.packer(spec).pack
    index = {tensor.name: position for position, tensor in enumerate(spec.inputs)}
    count, typed = len(spec.inputs), layout.dtype_source(spec)
    sources = layout.size_sources(spec)
    sizes = tuple(sources.values())
    strided = tuple(index[tensor.name] for tensor in spec.inputs if tensor.strided)
    dense = tuple(index[tensor.name] for tensor in spec.inputs if not tensor.strided)
    followed = tuple(index[spec.like(output).name] for output in spec.outputs)
    states = tuple(output.continues is not None for output in spec.outputs)
    chosen = [one for one in (T, R, S) if any(tensor.dtype == one for tensor in spec.inputs)]
    dtypes_of = tuple(layout.dtype_source(spec, one) for one in chosen)
    on_cpu, on_cuda, workspace_of = f"{stem}_cpu", f"{stem}_cuda", f"{stem}_cuda_workspace"

    def empty_state(output: Row, numbers: list[int], first: Tensor) -> Tensor:
        """Of a call whose initial state is None: in fp32, as zeros would be."""
        known = spec.with_products(dict(zip(sources, numbers, strict=True)))
        return first.new_empty(output.shape(known), dtype=torch.float32)

    def forward(*args: Any) -> Tensor | tuple[Tensor, ...]:
        kernels = library()
        tensors = list(args[:count])
        first = tensors[typed]
        numbers = [tensors[one].shape[axis] for one, axis in sizes]
        outputs = tuple(
            [
                torch.empty_like(tensors[one], memory_format=torch.contiguous_format)
                if tensors[one] is not None
                else empty_state(output, numbers, first)
                for one, output in zip(followed, spec.outputs, strict=True)
            ]
        )
        if 0 in numbers:  # nothing to compute: a state is passed on
            for output, one, is_state in zip(outputs, followed, states, strict=True):
                if is_state and tensors[one] is None:
                    output.zero_()
                elif is_state:
                    output.copy_(tensors[one])
            return outputs if len(outputs) > 1 else outputs[0]
        numbers += [
            _FP32 if tensors[one] is None else DTYPES[tensors[one].dtype] for one in dtypes_of
        ]
        numbers += args[count:]
        for one in strided:
            tensor = tensors[one]
            if tensor is None:
                numbers += _ABSENT
                continue
            tensors[one] = tensor = _dense(tensor)  # the list holds copies until the call is over
            strides = tensor.stride()
            numbers += (tensor.data_ptr(), strides[0], strides[1])
        for one in dense:
            tensor = tensors[one]
            if tensor is None:
                numbers.append(0)
                continue
            tensors[one] = tensor = tensor.contiguous()
            numbers.append(tensor.data_ptr())
        numbers += [output.data_ptr() for output in outputs]
        params = pack(*numbers)
        functions = kernels.functions
        if first.is_cuda:
            device = first.device
            with _current(device):
                arguments: list[Any] = [params]
                if stem in kernels.with_workspace:
                    size = getattr(functions, workspace_of)(params)
                    workspace = (
                        torch.empty(size, dtype=torch.uint8, device=device) if size else None
                    )
                    arguments.append(None if workspace is None else workspace.data_ptr())
                status = getattr(functions, on_cuda)(*arguments, _stream(device))
        else:
            threads = ctypes.c_int64(torch.get_num_threads())
            status = getattr(functions, on_cpu)(params, kernels.parallel_for, ctypes.byref(threads))
        if status:
            _fail(kernels, status)
        return outputs if len(outputs) > 1 else outputs[0]

    return forward
