"""ONNX Runtime's row in the registry. ONNX Runtime itself is imported when a session is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mamba_export.backends.backend import Absent, Backend, Runtime

if TYPE_CHECKING:
    from mamba_export.backends.onnxruntime.session import OrtSession


def _open_session(folder: Path, provider: str | None, threads: int | None) -> OrtSession:
    from mamba_export.backends.onnxruntime.providers import PROVIDERS
    from mamba_export.backends.onnxruntime.session import OrtSession

    chosen = None if provider is None else [PROVIDERS.get(provider.lower(), provider)]
    return OrtSession(folder, providers=chosen, threads=threads)


def _find(option: str, _folder: Path) -> Backend | Absent:
    from mamba_export.backends.onnxruntime.variants import find

    return find(option)


RUNTIME = Runtime(
    option="ort",
    title="ONNX Runtime",
    variants={
        "cpu": "the file's function bodies on the CPU",
        "native": "the compiled kernels on the CPU",
        "cuda": "the file's function bodies on a GPU",
        "cuda-native": "the compiled kernels on a GPU",
    },
    providers=("cpu", "cuda"),
    open_session=_open_session,
    find=_find,
)
