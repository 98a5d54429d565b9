"""TensorRT and TensorRT-RTX: engines from an exported folder, with our operators as plugins.

``build(folder)`` writes ``model.engine`` beside ``model.onnx``; ``bundle(folder, out)`` writes what a target
without Python needs to build the engine itself. ``TrtSession`` runs it, with the light
modules of this package alone, so everything is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_export.lazy import on_first_use

if TYPE_CHECKING:
    from mamba_export.backends.tensorrt.building import build, check_installed
    from mamba_export.backends.tensorrt.bundling import bundle
    from mamba_export.backends.tensorrt.description import EngineDescription, read_description
    from mamba_export.backends.tensorrt.options import BuildOptions
    from mamba_export.backends.tensorrt.profiles import Profile
    from mamba_export.backends.tensorrt.session import TrtSession

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "BuildOptions": f"{__name__}.options",
        "EngineDescription": f"{__name__}.description",
        "Profile": f"{__name__}.profiles",
        "TrtSession": f"{__name__}.session",
        "build": f"{__name__}.building",
        "bundle": f"{__name__}.bundling",
        "check_installed": f"{__name__}.building",
        "read_description": f"{__name__}.description",
    },
)

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
