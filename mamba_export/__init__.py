"""mamba_export: take a Mamba model out of PyTorch.

``export`` writes one ONNX file, ``verify`` compares it with PyTorch, ``OrtSession`` runs it; ``build`` makes a
TensorRT engine of it, which ``TrtSession`` runs. Each is imported on first use, so that a machine that only
runs models starts quickly and needs no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_export.lazy import on_first_use

if TYPE_CHECKING:
    from mamba_export.backends.onnxruntime import OrtSession, OrtState
    from mamba_export.backends.tensorrt import BuildOptions, TrtSession, build, bundle
    from mamba_export.contract.weights import Weights
    from mamba_export.errors import (
        CheckpointError,
        EngineError,
        ExportError,
        MambaExportError,
        MissingPackageError,
        SessionError,
    )
    from mamba_export.export import State, export
    from mamba_export.verify import verify

__version__ = "0.1.0"

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "BuildOptions": f"{__name__}.backends.tensorrt",
        "CheckpointError": f"{__name__}.errors",
        "EngineError": f"{__name__}.errors",
        "ExportError": f"{__name__}.errors",
        "MambaExportError": f"{__name__}.errors",
        "MissingPackageError": f"{__name__}.errors",
        "OrtSession": f"{__name__}.backends.onnxruntime",
        "OrtState": f"{__name__}.backends.onnxruntime",
        "SessionError": f"{__name__}.errors",
        "State": f"{__name__}.export",
        "TrtSession": f"{__name__}.backends.tensorrt",
        "Weights": f"{__name__}.contract.weights",
        "build": f"{__name__}.backends.tensorrt",
        "bundle": f"{__name__}.backends.tensorrt",
        "export": f"{__name__}.export",
        "verify": f"{__name__}.verify",
    },
    also=["__version__"],
)

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
    "State",
    "TrtSession",
    "Weights",
    "build",
    "bundle",
    "export",
    "verify",
]
