"""The library of compiled kernels: where it is, whether it fits this package, and which devices it runs on.

``pip install`` compiles ``plugins/kernels`` into ``mamba_export/lib/libmamba_export_kernels.so``, with CUDA
kernels where nvcc was there. Its C interface (``mamba_kernels.h``) is declared here for ctypes. The library
is optional: without it, ``dispatch`` takes another implementation.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from mamba_export.contract import OPERATORS
from mamba_export.contract.layout import INTERFACE_VERSION
from mamba_export.contract.layout import stem as stem_of
from mamba_export.cuda_queries import declare_cuda_queries, why_not_on_gpu
from mamba_export.errors import ImplementationError, MambaExportError
from mamba_export.libraries import KERNELS

LIBRARY_VARIABLE = KERNELS.variable
LIBRARY_FILE = KERNELS.file

VERSION = INTERFACE_VERSION  # of the library that this package calls
OK, INVALID = 0, 1  # mamba_status


@dataclass(frozen=True)
class Library:
    """The loaded library: its file, its C functions, and the address of its parallel-for.

    with_workspace: stems of the operators whose CUDA kernels ask for a workspace.
    """

    path: Path
    functions: ctypes.CDLL
    parallel_for: int
    with_workspace: frozenset[str]

    @property
    def instruction_set(self) -> str:
        """Instruction set that its kernels use on this CPU: "avx512", "avx2" or "baseline"."""
        return self.functions.mamba_cpu_instruction_set().decode()


def _declare(path: Path, functions: ctypes.CDLL) -> Library:
    declare_cuda_queries(functions)
    functions.mamba_cpu_instruction_set.argtypes = []
    functions.mamba_cpu_instruction_set.restype = ctypes.c_char_p
    # Params travel as the bytes of the struct, so every pointer is a plain one.
    pointer = ctypes.c_void_p
    with_workspace = set()
    for op in OPERATORS:
        stem = stem_of(op)
        if op.calls_products:  # it needs cuBLAS, which the runtimes bring
            continue
        arguments = {"cpu": [pointer] * 3, "cuda": [pointer] * 2}
        if hasattr(functions, f"{stem}_cuda_workspace"):
            with_workspace.add(stem)
            query = getattr(functions, f"{stem}_cuda_workspace")
            query.argtypes, query.restype = [pointer], ctypes.c_size_t
            arguments["cuda"] = [pointer] * 3
        for device in op.kernels:
            function = getattr(functions, f"{stem}_{device}")
            function.argtypes, function.restype = arguments[device], ctypes.c_int
    parallel_for = ctypes.cast(functions.mamba_thread_pool_parallel_for, pointer).value
    assert parallel_for is not None
    return Library(path, functions, parallel_for, frozenset(with_workspace))


@lru_cache(maxsize=8)
def _load(setting: str) -> Library | str:
    """The library for this value of the environment variable, or one line about why there is none."""
    try:
        path = KERNELS.path()
    except MambaExportError as error:
        return str(error)
    if path is None:
        return KERNELS.why_absent()
    try:
        functions = ctypes.CDLL(str(path))
        functions.mamba_kernels_version.argtypes = []
        functions.mamba_kernels_version.restype = ctypes.c_int
        version = functions.mamba_kernels_version()
        if version != VERSION:  # before anything else: another version may lack functions
            return (
                f"{path} has version {version} of the kernels' interface, and this mamba_export "
                f"needs {VERSION}: install mamba_export again"
            )
        return _declare(path, functions)
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded: {error}"


def available() -> bool:
    """Whether the library can be used in this process, on CPUs at least."""
    return isinstance(_load(KERNELS.setting), Library)


def why_absent() -> str:
    """One line about why ``available`` is False; empty where it is True."""
    loaded = _load(KERNELS.setting)
    return loaded if isinstance(loaded, str) else ""


def why_not_on(device: torch.device) -> str:
    """One line about why the kernels do not run on ``device``; empty where they do.

    A GPU is asked once a process. No device is an error: one that the library has no kernels for gets
    its line too.
    """
    if device.type == "cuda":
        return _why_not_on_gpu(KERNELS.setting, device.index)
    return why_absent() if device.type == "cpu" else f"there are no kernels for {device}"


@lru_cache(maxsize=64)
def _why_not_on_gpu(setting: str, index: int) -> str:
    loaded = _load(setting)
    return loaded if isinstance(loaded, str) else why_not_on_gpu(loaded.functions, index)


def library() -> Library:
    """The loaded library.

    Raises:
        ImplementationError: there is none; the message says why.
    """
    loaded = _load(KERNELS.setting)
    if isinstance(loaded, str):
        raise ImplementationError(loaded)
    return loaded
