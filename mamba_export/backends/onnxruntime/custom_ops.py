"""The custom-op library: our compiled kernels for the nodes of an exported file.

``pip install`` compiles it into ``mamba_export/lib``. ONNX Runtime, registered with it, runs our kernels;
without it, the functions that the file carries, in standard ONNX.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import onnxruntime as ort

from mamba_export.errors import SessionError, first_line
from mamba_export.libraries import CUSTOM_OPS

_REMEDY = f"install mamba_export again, or set {CUSTOM_OPS.variable}=none to run without it"

# Entries of a session's configuration (custom_ops.cpp).
_REGISTERED = "mamba_export.registered"  # written by the library itself
_FOR_CUDA = "mamba_export.cuda"  # read by it: register what has a kernel for CUDA alone, too


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    """The library's C functions; ONNX Runtime has the same file loaded.

    Raises:
        SessionError: it does not load.
    """
    try:
        library = ctypes.CDLL(str(path))
        library.mamba_last_error.restype = ctypes.c_char_p
        library.mamba_cuda_architectures.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise SessionError(f"{path} cannot be loaded ({first_line(error)}): {_REMEDY}") from error
    return library


def cuda_problem(device: int = 0) -> str:
    """One line about why our kernels cannot run on a GPU; empty where they can.

    Args:
        device: the GPU's number.

    Raises:
        SessionError: the library is there and does not load.
    """
    path = CUSTOM_OPS.path()
    if path is None:
        return CUSTOM_OPS.why_absent()
    library = load(path)
    if not library.mamba_cuda_architectures():
        return f"{path} was built without CUDA: install mamba_export where nvcc is"
    if library.mamba_cuda_check_device(device) != 0:
        return str(library.mamba_last_error().decode())
    return ""


def is_registered(options: ort.SessionOptions) -> bool:
    """Whether these session options have the library, whoever registered it."""
    try:
        return bool(options.get_session_config_entry(_REGISTERED) == "1")
    except (
        Exception
    ):  # what ONNX Runtime raises where there is no such entry, of no type of its own
        return False


def register(options: ort.SessionOptions, wanted: bool | None, *, for_cuda: bool = False) -> None:
    """Register the library with session options; nothing happens where they have it already.

    Args:
        options: of a session to come.
        wanted: True: it must be there; None: register it where it is installed; False: do nothing.
        for_cuda: the session will run on CUDA: operators that have a kernel for CUDA alone are registered
            too. On the CPU a file that holds them would then not load.

    Raises:
        SessionError: it is wanted and absent, or it is there and does not load.
    """
    if wanted is False or is_registered(options):
        return
    path = CUSTOM_OPS.path()
    if path is None:
        if wanted:
            raise SessionError(f"native=True: {CUSTOM_OPS.why_absent()}")
        return
    if for_cuda:
        options.add_session_config_entry(_FOR_CUDA, "1")
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise SessionError(
            f"{path} cannot be loaded by ONNX Runtime {ort.__version__} ({first_line(error)}): {_REMEDY}"
        ) from error


def check_registers() -> None:
    """Raise SessionError unless the library is there and this ONNX Runtime takes it."""
    register(ort.SessionOptions(), True)
