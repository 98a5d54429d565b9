"""Backends that ``verify`` can hold against PyTorch: which are present, and how to open them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mamba_export.runtime import OrtSession
from mamba_export.runtime.ort_load import with_defaults

_DTYPES_WITHOUT_MODELS = {
    "CPUExecutionProvider": {
        "bf16": "ONNX Runtime's CPU provider has no bf16 MatMul; operators and weights are checked"
    }
}
"""What a provider cannot run as a whole model, and why."""


@dataclass(frozen=True)
class Backend:
    """A way to run an exported file.

    name: for the report. open_model: folder -> session. run_graph: serialised one-node model and fp32
    inputs -> outputs. missing_dtypes: dtypes whose models it cannot run, with the reason.
    """

    name: str
    open_model: Callable[[Path], Any]
    run_graph: Callable[[bytes, dict[str, np.ndarray]], list[np.ndarray]]
    missing_dtypes: dict[str, str]


def _onnxruntime(provider: str) -> Backend:
    def run_graph(model: bytes, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(model, options, providers=with_defaults([provider]))
        return session.run(None, inputs)

    return Backend(
        name=f"onnxruntime {provider.removesuffix('ExecutionProvider')}",
        open_model=lambda folder: OrtSession(folder, providers=[provider]),
        run_graph=run_graph,
        missing_dtypes=_DTYPES_WITHOUT_MODELS.get(provider, {}),
    )


_ALIASES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NAMES = tuple(_ALIASES)
"""What ``--backend`` takes."""


def present(names: tuple[str, ...] = NAMES) -> tuple[list[Backend], dict[str, str]]:
    """The backends that this machine has, and for the others the reason."""
    found: list[Backend] = []
    missing: dict[str, str] = {}
    available = ort.get_available_providers()
    for name in names:
        provider = _ALIASES[name]
        backend = _onnxruntime(provider)
        if provider not in available:
            missing[backend.name] = f"the installed onnxruntime {ort.__version__} has no {provider}"
        elif name == "cuda" and not _gpu_works(backend):
            missing[backend.name] = "no NVIDIA GPU that ONNX Runtime can use"
        else:
            found.append(backend)
    return found, missing


def _gpu_works(backend: Backend) -> bool:
    """Whether the CUDA provider comes up: ONNX Runtime falls back to the CPU with no more than a log line."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=with_defaults([_ALIASES["cuda"]])
        )
    except Exception:
        return False
    return "CUDAExecutionProvider" in session.get_providers()
