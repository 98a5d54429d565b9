"""The TensorRT backend of ``verify``: the engine beside an exported file."""

from __future__ import annotations

from pathlib import Path

from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.cuda_driver import Gpu
from mamba_export.backends.tensorrt.description import read_description
from mamba_export.backends.tensorrt.engine import check_gpu
from mamba_export.backends.tensorrt.one_node_engine import open_graph
from mamba_export.backends.tensorrt.session import TrtSession
from mamba_export.errors import MambaExportError
from mamba_export.verify.backends import Backend


def find(folder: Path) -> tuple[Backend | None, str]:
    """The backend of a folder with an engine; where it cannot run here, None and the reason."""
    try:
        description = read_description(folder)
        check_gpu(description, Gpu())
        library = libraries.load(description.kind)
    except MambaExportError as error:
        return None, str(error)
    plugin = description.plugin_library is not None
    backend = Backend(
        name=f"{library}{', plugin' if plugin else ''}",
        open_model=TrtSession,
        open_graph=lambda model: open_graph(library, model, plugin=plugin),
        missing_dtypes={},
    )
    return backend, ""
