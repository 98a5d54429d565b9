"""mamba_export: take a Mamba model out of PyTorch.

``export`` writes one ONNX file, ``verify`` holds it against PyTorch, ``OrtSession`` runs it. What needs
PyTorch is imported on first use, so that a machine that only runs models starts quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_export.backends.onnxruntime.session import OrtSession
    from mamba_export.backends.tensorrt.session import TrtSession
    from mamba_export.errors import CheckpointError, ExportError, MambaExportError, SessionError
    from mamba_export.export import export
    from mamba_export.verify import verify

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "errors",
    "ExportError": "errors",
    "MambaExportError": "errors",
    "SessionError": "errors",
    "OrtSession": "backends.onnxruntime",
    "TrtSession": "backends.tensorrt",
    "export": "export",
    "verify": "verify",
}

__all__ = [
    "CheckpointError",
    "ExportError",
    "MambaExportError",
    "OrtSession",
    "SessionError",
    "TrtSession",
    "export",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
