"""The plugin library: our operators as TensorRT layers.

``pip install`` builds it where the CUDA toolkit and TensorRT's headers are.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from mamba_export import contract
from mamba_export.backends.tensorrt.library import Library
from mamba_export.backends.tensorrt.names import PLUGIN_FILE
from mamba_export.errors import EngineError, first_line
from mamba_export.files import installed_library

PLUGIN_VARIABLE = "MAMBA_EXPORT_TRT_PLUGIN"
"""Environment variable: path of the plugin library to use instead of the installed one, or ``none``."""

OPERATORS = (
    contract.SELECTIVE_SCAN,
    contract.SELECTIVE_SCAN_UNGATED,
    contract.CAUSAL_CONV1D,
)
"""Operators that the library has a plugin for."""


def plugin_path() -> Path | None:
    """The plugin library's file; None where there is none.

    Raises:
        EngineError: ``MAMBA_EXPORT_TRT_PLUGIN`` names something that is no file.
    """
    setting = os.environ.get(PLUGIN_VARIABLE, "")
    if setting == "none":
        return None
    if setting:
        path = Path(setting)
        if not path.is_file():
            raise EngineError(
                f"{PLUGIN_VARIABLE}={setting} is not a file: name {PLUGIN_FILE}, or none"
            )
        return path.resolve()
    return installed_library(PLUGIN_FILE)


def why_absent() -> str:
    """One line about why ``plugin_path`` is None; empty where it is not."""
    if plugin_path() is not None:
        return ""
    if os.environ.get(PLUGIN_VARIABLE) == "none":
        return f"the TensorRT plugin is switched off by {PLUGIN_VARIABLE}=none"
    return (
        f"{PLUGIN_FILE} is not installed with mamba_export: the CUDA toolkit, TensorRT's headers and "
        "`pip install .` in its sources build it"
    )


def load_plugin(library: Library) -> Path:
    """Register our plugins with a runtime, once a process.

    Returns:
        The library's file.

    Raises:
        EngineError: there is no library, or it does not load, or it is not ours.
    """
    path = plugin_path()
    if path is None:
        raise EngineError(f"{why_absent()}; or --no-plugin for the function bodies")
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
