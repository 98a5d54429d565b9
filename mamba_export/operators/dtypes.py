"""The contract's dtypes in PyTorch, and the dtype of the operators' arithmetic."""

from __future__ import annotations

import torch

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""By the names in ``contract.DTYPES``."""

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""The names, by dtype."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of arithmetic and recurrent state for inputs of ``dtype``: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
