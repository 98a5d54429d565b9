"""mamba_export: take a Mamba model out of PyTorch.

``export`` writes one ONNX file, ``verify`` holds it against PyTorch, ``OrtSession`` runs it; ``build`` makes a
TensorRT engine of it, which ``TrtSession`` runs. Each is imported on first use, so that a machine that only
runs models starts quickly and needs no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mamba_export.requirements import named

if TYPE_CHECKING:
    from mamba_export.backends.onnxruntime import OrtSession, OrtState
    from mamba_export.backends.tensorrt import BuildOptions, TrtSession, build, bundle
    from mamba_export.errors import (
        CheckpointError,
        EngineError,
        ExportError,
        MambaExportError,
        MissingPackageError,
        SessionError,
    )
    from mamba_export.export import export
    from mamba_export.verify import verify

__version__ = "0.1.0"

_HOMES = {
    "BuildOptions": "backends.tensorrt",
    "CheckpointError": "errors",
    "EngineError": "errors",
    "ExportError": "errors",
    "MambaExportError": "errors",
    "MissingPackageError": "errors",
    "OrtSession": "backends.onnxruntime",
    "OrtState": "backends.onnxruntime",
    "SessionError": "errors",
    "TrtSession": "backends.tensorrt",
    "build": "backends.tensorrt",
    "bundle": "backends.tensorrt",
    "export": "export",
    "verify": "verify",
}

__all__ = [
    "BuildOptions",
    "CheckpointError",
    "EngineError",
    "ExportError",
    "MambaExportError",
    "MissingPackageError",
    "OrtSession",
    "OrtState",
    "SessionError",
    "TrtSession",
    "build",
    "bundle",
    "export",
    "verify",
]


def __getattr__(name: str) -> Any:
    """What the API names, from its home.

    Raises:
        MissingPackageError: a package that it needs is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with named():
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
