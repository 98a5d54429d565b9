"""Packages that an installation may lack, and the command that adds each.

A base installation runs exported folders; the rest is in extras (pyproject.toml). Code imports what it needs
and says nothing of absence; ``named`` turns the import's failure into one line where a user meets it: around
the API's lookup and around a command.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from mamba_export.errors import MissingPackageError

_EXPORT = "pip install 'mamba_export[export]'"
_TENSORRT = "pip install 'mamba_export[tensorrt]'"

COMMANDS = {
    "cuda-bindings": _TENSORRT,
    "huggingface_hub": _EXPORT,
    "onnx": _EXPORT,
    "onnx_graphsurgeon": _TENSORRT,
    "onnx_ir": _EXPORT,
    "onnxruntime": "pip install onnxruntime, or onnxruntime-gpu for NVIDIA GPUs",
    "onnxscript": _EXPORT,
    "safetensors": _EXPORT,
    "tensorrt_rtx": _TENSORRT,
    "torch": _EXPORT,
    "triton": "pip install triton",
}
"""By the package's name: what installs it."""

_PACKAGES_OF_MODULES = {"cuda": "cuda-bindings"}
"""Where the name that is imported is not the package's."""


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not.

    A folder of that name without code, such as ``tensorrt`` in the current one, is no package, though Python
    would import it as an empty namespace.
    """
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def how_to_install(package: str) -> str:
    """What a report says of a package that is absent: that it is, and the command."""
    return f"not installed: {COMMANDS[package]}"


def missing(error: ModuleNotFoundError) -> MissingPackageError | None:
    """One line that names a missing package and its command; None where the package is not in ``COMMANDS``.

    Args:
        error: what the import raised.
    """
    module = (error.name or "").partition(".")[0]
    package = _PACKAGES_OF_MODULES.get(module, module)
    if package not in COMMANDS:
        return None
    return MissingPackageError(
        f"this needs {package}, which is {how_to_install(package)}", name=package
    )


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Around code that imports: a known package that is missing becomes one clear line.

    Raises:
        MissingPackageError: in place of the ModuleNotFoundError of a package in ``COMMANDS``.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        line = missing(error)
        if line is None:
            raise
        raise line from error
