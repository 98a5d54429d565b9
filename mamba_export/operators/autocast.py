"""``torch.autocast`` for our operators, by the row's dtype classes.

PyTorch's own helper would cast every tensor, and so lose the fp32 parameters and state that the contract
asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_export.contract import layout
from mamba_export.contract.spec import FP32, Operator, T
from mamba_export.operators.dtypes import accumulation_dtype


def cast_inputs(
    spec: Operator, tensors: Sequence[Tensor | None], dtype: torch.dtype
) -> list[Tensor | None]:
    """A call's inputs under autocast: T in its dtype (float64 is left alone), FP32 in the accumulation
    dtype, R and S as they are.

    Args:
        spec: the row.
        tensors: in its order, None for an absent one.
        dtype: the autocast dtype.
    """
    first = tensors[layout.dtype_source(spec)]
    accumulation = accumulation_dtype(dtype if first is None else first.dtype)
    cast: list[Tensor | None] = []
    for row, tensor in zip(spec.inputs, tensors, strict=True):
        if tensor is not None and row.dtype == FP32:
            tensor = tensor.to(accumulation)
        elif tensor is not None and row.dtype == T and tensor.dtype != torch.float64:
            tensor = tensor.to(dtype)
        cast.append(tensor)
    return cast


def register_autocast(
    library: torch.library.Library, spec: Operator, operator: Callable[..., Any]
) -> None:
    """Make ``operator`` cast its own inputs under autocast, on CPUs and GPUs."""
    count = len(spec.inputs)
    for device_type in ("cpu", "cuda"):
        key = f"Autocast{device_type.upper()}"

        def run(*args: Any, _device_type: str = device_type, _key: str = key) -> Any:
            excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key))
            dtype = torch.get_autocast_dtype(_device_type)
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                return operator(*cast_inputs(spec, args[:count], dtype), *args[count:])

        library.impl(spec.torch_name, run, key)
