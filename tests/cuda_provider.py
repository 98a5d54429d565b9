"""What tests of ONNX Runtime's CUDA provider with our kernels need, and why they are skipped without it."""

from __future__ import annotations

import onnxruntime as ort
import pytest

from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.backends.onnxruntime.providers import CUDA_PROVIDER as CUDA

NO_PROVIDER = "this ONNX Runtime has no CUDA provider (onnxruntime-gpu has)"

NEEDS_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA not in ort.get_available_providers(), reason=NO_PROVIDER),
]
"""Marks of tests of the provider, or of a file of them."""


def _missing() -> str:
    """What is missing for our kernels there; empty where nothing is."""
    return custom_ops.cuda_problem() if CUDA in ort.get_available_providers() else NO_PROVIDER


NEEDS_CUDA_KERNELS = [pytest.mark.gpu, pytest.mark.skipif(bool(_missing()), reason=_missing())]
"""The same of our kernels there."""
