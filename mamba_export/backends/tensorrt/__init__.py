"""TensorRT and TensorRT-RTX: engines from an exported folder, with our operators as plugins.

``build(folder)`` writes ``model.engine`` beside ``model.onnx``; ``bundle(folder, out)`` writes what a target
without Python needs to build the engine itself. ``TrtSession`` runs it, with the light
modules of this package alone, so everything is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_export.backends.tensorrt.building import build, check_installed
    from mamba_export.backends.tensorrt.bundling import bundle
    from mamba_export.backends.tensorrt.description import EngineDescription, read_description
    from mamba_export.backends.tensorrt.options import BuildOptions
    from mamba_export.backends.tensorrt.profiles import Profile
    from mamba_export.backends.tensorrt.session import TrtSession

_HOMES = {
    "BuildOptions": "options",
    "EngineDescription": "description",
    "Profile": "profiles",
    "TrtSession": "session",
    "build": "building",
    "bundle": "bundling",
    "check_installed": "building",
    "read_description": "description",
}

__all__ = [
    "BuildOptions",
    "EngineDescription",
    "Profile",
    "TrtSession",
    "build",
    "bundle",
    "check_installed",
    "read_description",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
