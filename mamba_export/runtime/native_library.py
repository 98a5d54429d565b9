"""The custom-op library: our compiled kernels for the nodes of an exported file.

``pip install`` compiles it into ``mamba_export/lib``. ONNX Runtime, registered with it, runs our kernels;
without it, the functions that the file carries, in standard ONNX.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort

from mamba_export.errors import SessionError
from mamba_export.files import installed_library

LIBRARY_VARIABLE = "MAMBA_EXPORT_LIBRARY"
"""Environment variable: path of the library to use instead of the installed one, or ``none`` for no library."""

LIBRARY_FILE = "libmamba_export_ort.so"

_REGISTERED = "mamba_export.registered"  # written by the library itself (custom_ops.cpp)


def library_path() -> Path | None:
    """The file to register with ONNX Runtime's session options, in any language; None where there is none.

    Raises:
        SessionError: ``MAMBA_EXPORT_LIBRARY`` names something that is no file.
    """
    setting = os.environ.get(LIBRARY_VARIABLE, "")
    if setting == "none":
        return None
    if setting:
        path = Path(setting)
        if not path.is_file():
            raise SessionError(
                f"{LIBRARY_VARIABLE}={setting} is not a file: name {LIBRARY_FILE}, or none"
            )
        return path.resolve()
    return installed_library(LIBRARY_FILE)


def why_absent() -> str:
    """One line about why ``library_path`` is None; empty where it is not."""
    if library_path() is not None:
        return ""
    if os.environ.get(LIBRARY_VARIABLE) == "none":
        return f"the native library is switched off by {LIBRARY_VARIABLE}=none"
    return (
        f"{LIBRARY_FILE} is not installed with mamba_export: "
        "a C++ compiler and `pip install .` in its sources build it"
    )


def is_registered(options: ort.SessionOptions) -> bool:
    """Whether these session options have the library, whoever registered it."""
    try:
        return bool(options.get_session_config_entry(_REGISTERED) == "1")
    except (
        Exception
    ):  # what ONNX Runtime raises where there is no such entry, of no type of its own
        return False


def register(options: ort.SessionOptions, wanted: bool | None) -> None:
    """Register the library with session options; nothing happens where they have it already.

    Args:
        options: of a session to come.
        wanted: True: it must be there; None: register it where it is installed; False: do nothing.

    Raises:
        SessionError: it is wanted and absent, or it is there and does not load.
    """
    if wanted is False or is_registered(options):
        return
    path = library_path()
    if path is None:
        if wanted:
            raise SessionError(f"native=True: {why_absent()}")
        return
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SessionError(
            f"{path} cannot be loaded by ONNX Runtime {ort.__version__} ({reason}): install mamba_export "
            f"again, or set {LIBRARY_VARIABLE}=none to run without it"
        ) from error
