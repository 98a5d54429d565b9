"""Where an installation keeps what it compiled: the one finder of our libraries, and why one is absent.

``pip install`` puts them into ``mamba_export/lib``. An environment variable names another file, or ``none``
for no library. Nothing here loads a library, and nothing here imports more than errors.
"""

from __future__ import annotations

import os
import site
import sys
from dataclasses import dataclass
from pathlib import Path

from mamba_export import given
from mamba_export.errors import EngineError, MambaExportError, SessionError

_SHOWN = 200
"""Characters of an environment variable that a message shows."""


@dataclass(frozen=True)
class CompiledFile:
    """A file that an installation compiles, or does not.

    Args:
        file: its name.
        variable: environment variable that names another file, or ``none`` for no library.
        switched_off: what there is none of then, with its verb.
        remedy: what builds it.
        error: raised where the variable names no file.
    """

    file: str
    variable: str
    switched_off: str
    remedy: str
    error: type[MambaExportError] = MambaExportError

    @property
    def setting(self) -> str:
        """The environment variable's value; empty where it is not set."""
        return os.environ.get(self.variable, "")

    def path(self) -> Path | None:
        """The file, absolute; None where there is none.

        Raises:
            MambaExportError: the environment variable names something that is no file; of type ``error``.
        """
        setting = self.setting
        if setting == "none":
            return None
        if not setting:
            return installed(self.file)
        path = given.path(setting, self.variable, self.error)
        if not _is_file(path):
            shown = setting if len(setting) <= _SHOWN else setting[:_SHOWN] + "..."
            raise self.error(f"{self.variable}={shown} is not a file: name {self.file}, or none")
        return path.resolve()

    def why_absent(self) -> str:
        """One line about why ``path`` is None; empty where it is not. Raises as ``path`` does."""
        if self.path() is not None:
            return ""
        if self.setting == "none":
            return f"{self.switched_off} switched off by {self.variable}=none"
        return f"{self.file} is not installed with mamba_export: {self.remedy}"


_BUILT_FROM_CPP = "a C++ compiler and `pip install .` in its sources build it"

KERNELS = CompiledFile(
    file="libmamba_export_kernels.so",
    variable="MAMBA_EXPORT_KERNELS",
    switched_off="the compiled kernels are",
    remedy=_BUILT_FROM_CPP,
)
"""The compiled kernels, for PyTorch."""

CUSTOM_OPS = CompiledFile(
    file="libmamba_export_ort.so",
    variable="MAMBA_EXPORT_LIBRARY",
    switched_off="the native library is",
    remedy=_BUILT_FROM_CPP,
    error=SessionError,
)
"""The custom operators of ONNX Runtime."""

TRT_PLUGIN = CompiledFile(
    file="libmamba_export_trt.so",
    variable="MAMBA_EXPORT_TRT_PLUGIN",
    switched_off="the TensorRT plugin is",
    remedy="the CUDA toolkit, TensorRT's headers and `pip install .` in its sources build it",
    error=EngineError,
)
"""The plugins of TensorRT and TensorRT-RTX."""

MAMBA_RUN = "mamba_run"
"""The program that runs an engine without Python; it is built with the TensorRT plugins."""


def installed(name: str) -> Path | None:
    """Path of a compiled file that was installed with the package; None where there is none.

    A file found here is opened as code, so only folders are looked at that the installation or the user's
    environment names, each as ``mamba_export/lib``:

    1. the package's own folder, and those that an editable installation's finder gives the package
       (it keeps the sources in a checkout and the libraries under site-packages);
    2. the folders where this Python keeps installed packages, the user's own among them;
    3. absolute entries of PYTHONPATH, such as one with the sources before one with the libraries.

    Never relative entries, the current directory, or a script's folder, which Python puts first in
    ``sys.path``: what lies there is often data that others wrote.
    """
    package = __name__.partition(".")[0]
    roots = [Path(__file__).parent, *map(Path, sys.modules[package].__path__)]
    roots += [folder / package for folder in (*_site_folders(), *_named_folders())]
    places = (root / "lib" / name for root in roots if root.is_absolute())
    return next((place.resolve() for place in places if _is_file(place)), None)


def _site_folders() -> list[Path]:
    """Where this Python keeps installed packages."""
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return list(map(Path, (*site.getsitepackages(), *users)))


def _named_folders() -> list[Path]:
    """The absolute entries of PYTHONPATH other than the current directory."""
    if sys.flags.ignore_environment:
        return []
    here = os.path.realpath(os.curdir)
    entries = map(Path, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return [path for path in entries if path.is_absolute() and os.path.realpath(path) != here]


def _is_file(path: Path) -> bool:
    """False, too, where the name is none that a file can have, or its folder cannot be searched."""
    try:
        return path.is_file()
    except OSError:
        return False
