"""Shared by all tests: GPU skips with a reason, tiny models, seeds."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mamba_export.backends.onnxruntime  # noqa: F401  (switches telemetry off before a test's own import)
from mamba_export.models import MambaConfig, MambaLM


def pytest_configure() -> None:
    """ONNX Runtime's threads sleep while they wait: they spin, and workers of tests share the cores."""
    import onnxruntime as ort

    class SessionOptions(ort.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.add_session_config_entry("session.intra_op.allow_spinning", "0")

    ort.SessionOptions = SessionOptions


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))


def pytest_runtest_setup() -> None:
    _read_torchlib_once()


def _read_torchlib_once() -> None:
    """torch.onnx parses ONNX Script's 500 functions at every export, half the time of a small one's.

    What it made of them is kept; a copy takes what an export adds. Where PyTorch has another such class, or
    nothing was exported yet, nothing is done.
    """
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(module, "ONNXRegistry", None)
    make = getattr(registry, "from_torchlib", None)
    if make is None or hasattr(make, "cache"):
        return
    made = functools.cache(make)

    def from_torchlib(*args: Any, **options: Any) -> Any:
        one = copy.copy(made(*args, **options))
        one.functions = {target: list(found) for target, found in one.functions.items()}
        return one

    from_torchlib.cache = made  # type: ignore[attr-defined]
    registry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[union-attr]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_config() -> MambaConfig:
    return MambaConfig(d_model=32, n_layer=2, vocab_size=256, eos_token_id=0)


@pytest.fixture(scope="session")
def tiny_model(tiny_config: MambaConfig) -> MambaLM:
    """Random weights, with logits spread enough that an argmax means something."""
    torch.manual_seed(0)
    model = MambaLM(tiny_config).eval()
    with torch.no_grad():
        model.embeddings.weight.mul_(20)
    return model


@pytest.fixture(scope="session")
def plant_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped forecaster of a plant, exported, with its detector's limits."""
    from tasks.forecaster import export_watched

    checkpoint = Path(__file__).parents[1] / "models" / "plant-forecast"
    return export_watched(checkpoint, tmp_path_factory.mktemp("plant") / "out")


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """From a name of ``third_party.catalogue`` to its model and exported folder, ``third_party.exported``."""
    from third_party.exported import exporter

    return exporter(tmp_path_factory.mktemp("third_party"))
