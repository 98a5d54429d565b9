"""``mamba-export library-path``: the file that other programs register with ONNX Runtime."""

from __future__ import annotations

from mamba_export.cli.streams import print_path
from mamba_export.errors import MambaExportError
from mamba_export.libraries import CUSTOM_OPS


def command() -> None:
    """Print the custom-op library's file, for ONNX Runtime's register_custom_ops_library."""
    path = CUSTOM_OPS.path()
    if path is None:
        raise MambaExportError(CUSTOM_OPS.why_absent())
    print_path(path)
