"""The plugin library: our operators as TensorRT layers.

``pip install`` builds it where the CUDA toolkit and TensorRT's headers are.
"""

from __future__ import annotations

import functools
from pathlib import Path

from mamba_export import contract
from mamba_export.backends.tensorrt.library import Library
from mamba_export.errors import EngineError, first_line
from mamba_export.libraries import TRT_PLUGIN

OPERATORS = tuple(form.name for op in contract.OPERATORS if op.has_plugin for form in op.forms())
"""Nodes that the library has a plugin for."""


def load_plugin(library: Library) -> Path:
    """Register our plugins with a runtime, once a process.

    Returns:
        The library's file.

    Raises:
        EngineError: there is no library, or it does not load, or it is not ours.
    """
    path = TRT_PLUGIN.path()
    if path is None:
        raise EngineError(f"{TRT_PLUGIN.why_absent()}; or --no-plugin for the function bodies")
    _register(library, path)
    return path


@functools.cache
def _register(library: Library, path: Path) -> None:
    registry = library.module.get_plugin_registry()
    library.logger.take_errors()
    try:
        handle = registry.load_library(str(path))
    except Exception as error:  # the binding's own exceptions share no other base
        raise EngineError(f"{path} cannot be loaded by {library}: {first_line(error)}") from error
    if handle is None:
        raise EngineError(f"{path} cannot be loaded by {library}: {library.reason()}")
    for name in OPERATORS:
        creator = registry.get_creator(name, contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE)
        if creator is None:
            raise EngineError(
                f"{path} is not our plugin library: it has no {name} of version "
                f"{contract.PLUGIN_VERSION} in namespace {contract.PLUGIN_NAMESPACE}"
            )
