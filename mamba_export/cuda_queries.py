"""What a compiled library of ours says of GPUs: which it was built for, and which of this machine's it runs on.

The kernels, the custom ops for ONNX Runtime and the TensorRT plugins export these functions. Needs no PyTorch.
"""

from __future__ import annotations

import ctypes


def declare_cuda_queries(functions: ctypes.CDLL) -> None:
    """Declare the functions that ``cuda_architectures`` and ``why_not_on_gpu`` call.

    Raises:
        AttributeError: the library does not have them.
    """
    functions.mamba_last_error.argtypes = []
    functions.mamba_last_error.restype = ctypes.c_char_p
    functions.mamba_cuda_architectures.argtypes = []
    functions.mamba_cuda_architectures.restype = ctypes.c_char_p
    functions.mamba_cuda_check_device.argtypes = [ctypes.c_int]
    functions.mamba_cuda_check_device.restype = ctypes.c_int


def cuda_architectures(functions: ctypes.CDLL) -> str:
    """GPU architectures that a library was built for, such as "75 80 90 120+ptx"; "" without CUDA."""
    return functions.mamba_cuda_architectures().decode()


def why_not_on_gpu(functions: ctypes.CDLL, index: int) -> str:
    """One line about why a library's kernels do not run on GPU ``index``; "" where they do."""
    if functions.mamba_cuda_check_device(index) == 0:
        return ""
    return functions.mamba_last_error().decode()
