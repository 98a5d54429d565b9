"""What ``verify`` may run in ONNX Runtime: a provider, with our kernels or with the file's function bodies."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime as ort

from mamba_export.backends.backend import Absent, Backend, Graph, Inputs
from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.backends.onnxruntime.providers import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    MISSING_DTYPES,
    make_session,
    with_defaults,
)
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.libraries import CUSTOM_OPS

_VARIANTS = {
    "cpu": (CPU_PROVIDER, False),
    "native": (CPU_PROVIDER, True),
    "cuda": (CUDA_PROVIDER, False),
    "cuda-native": (CUDA_PROVIDER, True),
}
"""Provider, and whether our custom-op library runs the nodes of our domain or their function bodies."""


def find(option: str) -> Backend | Absent:
    """A variant by its option, or why it is not here."""
    provider, native = _VARIANTS[option]
    name = f"onnxruntime {provider.removesuffix('ExecutionProvider')}{', native' * native}"
    reason = _why_absent(provider, native)
    if reason:
        return Absent(name, reason)
    return Backend(
        name=name,
        open_model=lambda folder: OrtSession(folder, providers=[provider], native=native),
        open_graph=lambda model: _open_graph(model, provider, native),
        missing_dtypes={
            dtype: f"ONNX Runtime's {reason}; operators and weights are checked"
            for dtype, reason in MISSING_DTYPES.get(provider, {}).items()
            if not (native and provider == CPU_PROVIDER)  # then the file decides, when it is opened
        },
        exact_products=provider == CPU_PROVIDER,
    )


def _open_graph(model: bytes, provider: str, native: bool) -> Graph:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal: its errors are the report's
    custom_ops.register(options, native, for_cuda=provider == CUDA_PROVIDER)
    session = make_session(model, options, with_defaults([provider]))

    def run(inputs: Inputs) -> list[np.ndarray]:
        return session.run(None, inputs)

    return run


def _why_absent(provider: str, native: bool) -> str:
    if provider not in ort.get_available_providers():
        return f"the installed onnxruntime {ort.__version__} has no {provider}"
    if provider == CUDA_PROVIDER:
        if not _gpu_works():
            return "no NVIDIA GPU that ONNX Runtime can use"
        return custom_ops.cuda_problem() if native else ""
    return CUSTOM_OPS.why_absent() if native else ""


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
