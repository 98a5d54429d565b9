"""What the tests of whole layers on the GPU share: the C functions, and the products that those call."""

from __future__ import annotations

import ctypes

import torch
from c_header import mirror
from torch import Tensor

from mamba_export.operators import kernel_library

GPU = torch.device("cuda", 0)
CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""``mamba_dtype`` of each dtype."""

Product = mirror("mamba_product")
Multiply = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Product), ctypes.c_void_p)


def layer_functions(stem: str, params: type[ctypes.Structure]) -> ctypes.CDLL:
    """The library, with a layer's functions declared."""
    library = kernel_library.library().functions
    struct, pointer = ctypes.POINTER(params), ctypes.c_void_p
    getattr(library, f"{stem}_is_step_cuda").argtypes = [struct]
    for name in (f"{stem}_step_cuda_workspace", f"{stem}_cuda_workspace"):
        workspace = getattr(library, name)
        workspace.argtypes, workspace.restype = [struct], ctypes.c_size_t
    getattr(library, f"{stem}_step_cuda").argtypes = [struct, pointer, pointer]
    getattr(library, f"{stem}_cuda").argtypes = [struct, Multiply, pointer, pointer, pointer]
    return library


class _DeviceMemory:
    """Memory at an address, for torch to look at."""

    def __init__(self, address: int, count: int, bytes_each: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": f"<i{bytes_each}", "data": (address, False), "version": 2,
        }  # fmt: skip


def _matrix(address: int, rows: int, columns: int, stride: int, code: int) -> Tensor:
    dtype = {number: dtype for dtype, number in CODES.items()}[code]
    count = (rows - 1) * stride + columns
    memory = torch.as_tensor(_DeviceMemory(address, count, dtype.itemsize), device=GPU)
    return memory.view(dtype).as_strided((rows, columns), (stride, 1))


@Multiply
def multiply(_context: object, product: object, _stream: object) -> int:
    """What ONNX Runtime's cuBLAS does in the custom op, by torch."""
    p = product.contents  # type: ignore[attr-defined]
    a = _matrix(p.a, p.rows, p.depth, p.a_stride, p.dtype)
    b = _matrix(p.b, p.depth, p.columns, p.columns, p.dtype)
    c = _matrix(p.c, p.rows, p.columns, p.c_stride, p.c_dtype)
    result = a.float() @ b.float()
    if p.addend:
        result += _matrix(p.addend, p.rows, p.columns, p.c_stride, p.c_dtype).float()
    c.copy_(result)
    return 0
