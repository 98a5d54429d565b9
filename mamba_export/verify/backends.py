"""Backends that ``verify`` can hold against PyTorch: which are present, and how to open them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.backends.onnxruntime.loading import CPU_PROVIDER, CUDA_PROVIDER, with_defaults
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.libraries import CUSTOM_OPS

_DTYPES_WITHOUT_MODELS = {
    CPU_PROVIDER: {
        "bf16": "ONNX Runtime's CPU provider has no bf16 MatMul; operators and weights are checked"
    }
}
"""What a provider cannot run as a whole model, and why."""


Inputs = dict[str, np.ndarray]
"""Of a one-node graph, in fp32."""


@dataclass(frozen=True)
class Backend:
    """A way to run an exported file.

    name: for the report. open_model: folder -> session. open_graph: serialised one-node model -> a function
    from its fp32 inputs to its outputs. missing_dtypes: dtypes whose models it cannot run, with the reason.
    """

    name: str
    open_model: Callable[[Path], Any]
    open_graph: Callable[[bytes], Callable[[Inputs], list[np.ndarray]]]
    missing_dtypes: dict[str, str]

    def run_graph(self, model: bytes, inputs: Inputs) -> list[np.ndarray]:
        """Run a serialised one-node model once."""
        return self.open_graph(model)(inputs)


def _onnxruntime(provider: str, native: bool) -> Backend:
    def open_graph(model: bytes) -> Callable[[Inputs], list[np.ndarray]]:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        custom_ops.register(options, native, for_cuda=provider == CUDA_PROVIDER)
        session = ort.InferenceSession(model, options, providers=with_defaults([provider]))
        return lambda inputs: session.run(None, inputs)

    return Backend(
        name=f"onnxruntime {provider.removesuffix('ExecutionProvider')}{', native' * native}",
        open_model=lambda folder: OrtSession(folder, providers=[provider], native=native),
        open_graph=open_graph,
        missing_dtypes=_DTYPES_WITHOUT_MODELS.get(provider, {}),
    )


_ALIASES = {
    "cpu": (CPU_PROVIDER, False),
    "native": (CPU_PROVIDER, True),
    "cuda": (CUDA_PROVIDER, False),
    "cuda-native": (CUDA_PROVIDER, True),
}
"""Provider, and whether our custom-op library runs the nodes of our domain or their function bodies."""
TRT = "trt"
NAMES = (*_ALIASES, TRT)
"""What ``--backend`` takes."""


def present(
    names: tuple[str, ...] = NAMES, folder: Path | None = None
) -> tuple[list[Backend], dict[str, str]]:
    """The backends that this machine has for a folder, and for the others the reason."""
    found: list[Backend] = []
    missing: dict[str, str] = {}
    available = ort.get_available_providers()
    for name in names:
        if name == TRT:
            from mamba_export.verify import trt  # it imports this module

            engine, reason = trt.find(folder or Path())
            found += [] if engine is None else [engine]
            missing.update({} if engine else {"TensorRT": reason})
            continue
        provider, native = _ALIASES[name]
        backend = _onnxruntime(provider, native)
        if provider not in available:
            missing[backend.name] = f"the installed onnxruntime {ort.__version__} has no {provider}"
        elif provider == CUDA_PROVIDER and not _gpu_works():
            missing[backend.name] = "no NVIDIA GPU that ONNX Runtime can use"
        elif native and (problem := _native_problem(provider)):
            missing[backend.name] = problem
        else:
            found.append(backend)
    return found, missing


def _native_problem(provider: str) -> str:
    if provider == CUDA_PROVIDER:
        return custom_ops.cuda_problem()
    return CUSTOM_OPS.why_absent()


@functools.cache
def _gpu_works() -> bool:
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
            model.SerializeToString(), options, providers=with_defaults([CUDA_PROVIDER])
        )
    except Exception:
        return False
    return CUDA_PROVIDER in session.get_providers()
