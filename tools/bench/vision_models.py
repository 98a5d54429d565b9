"""Whole vision models on a CPU: the tests' models in the style of VMamba and Vim, of the tiny ones' widths."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.rows import Row
from bench.timing import median_milliseconds
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.export import export
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.operators.dispatch import forced

_TESTS = Path(__file__).resolve().parents[2] / "tests"
IMAGE = 224
"""Height and width in pixels."""


def styled_models() -> dict[str, Callable[[], nn.Module]]:
    """What makes each model, by name; the classes stand among the tests."""
    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    scans: Any = importlib.import_module("third_party.cross_scans")
    sequences: Any = importlib.import_module("third_party.image_sequences")
    return {
        "VMamba-like, width 96, 4 blocks": lambda: scans.VMambaLike(
            *[scans.SS2D] * 4, width=96, classes=1000
        ),
        "Vim-like, width 192, 24 layers": lambda: sequences.VimLike(192, 24, IMAGE // 8, 1000),
    }


def vision_model_rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time one image, fp32: PyTorch on the reference scan, and ONNX Runtime without and with our library.

    Args:
        progress: called with what is being done.
    """
    for name, make in styled_models().items():
        torch.manual_seed(0)
        model, image = make().eval(), torch.randn(1, 3, IMAGE, IMAGE)
        what = f"{name}, fp32, an image of {IMAGE} x {IMAGE}"
        progress(f"{what}: PyTorch")
        yield Row(what, "PyTorch, reference scan", _reference_milliseconds(model, image))
        with tempfile.TemporaryDirectory() as temporary:
            progress(f"{what}: exporting")
            folder = export(model, (image,), output=Path(temporary) / "model")
            for label, native in (("function bodies", False), ("native kernels", True)):
                if native and CUSTOM_OPS.path() is None:
                    continue
                progress(f"{what}: ONNX Runtime, {label}")
                session = OrtSession(folder, providers=["CPUExecutionProvider"], native=native)
                pixels = image.numpy()
                took = median_milliseconds(lambda: session.run(pixels))  # noqa: B023
                yield Row(what, f"ONNX Runtime, {label}", took)


def _reference_milliseconds(model: nn.Module, image: Tensor) -> float:
    with torch.no_grad(), forced("reference"):
        return median_milliseconds(lambda: model(image), min_runs=1)
