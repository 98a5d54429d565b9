"""The names of dtypes in a program, PyTorch's dtypes and ONNX's."""

from __future__ import annotations

import onnx_ir as ir
import torch

from mamba_export.operators.dtypes import TORCH_DTYPES

TORCH: dict[str, torch.dtype] = {
    **TORCH_DTYPES,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in TORCH.items()}
ONNX: dict[str, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "bool": ir.DataType.BOOL,
}
