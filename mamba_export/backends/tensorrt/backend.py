"""TensorRT's row in the registry. TensorRT itself is imported when an engine is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mamba_export.backends.backend import Absent, Backend, Graph, Runtime
from mamba_export.errors import MambaExportError, SessionError

if TYPE_CHECKING:
    from mamba_export.backends.tensorrt.session import TrtSession

_TITLE = "TensorRT"


def _open_session(folder: Path, provider: str | None, threads: int | None) -> TrtSession:
    from mamba_export.backends.tensorrt.session import TrtSession

    if provider is not None or threads is not None:
        raise SessionError("--provider and --threads are for --backend ort: leave them out")
    return TrtSession(folder)


def _find(_option: str, folder: Path) -> Backend | Absent:
    """The engine beside an exported file, where this machine runs it."""
    from mamba_export.backends.tensorrt import library as libraries
    from mamba_export.backends.tensorrt.cuda_driver import Gpu
    from mamba_export.backends.tensorrt.description import read_description
    from mamba_export.backends.tensorrt.engine import check_gpu
    from mamba_export.backends.tensorrt.session import TrtSession

    try:
        description = read_description(folder)
        check_gpu(description, Gpu())
        library = libraries.load(description.kind)
    except MambaExportError as error:
        return Absent(_TITLE, str(error))
    plugin = description.plugin_library is not None

    def open_graph(model: bytes) -> Graph:
        from mamba_export.backends.tensorrt import one_node_engine

        return one_node_engine.open_graph(library, model, plugin=plugin)

    return Backend(f"{library}{', plugin' if plugin else ''}", TrtSession, open_graph)


RUNTIME = Runtime(
    option="trt",
    title=_TITLE,
    variants={"trt": "the engine that build wrote"},
    open_session=_open_session,
    find=_find,
)
