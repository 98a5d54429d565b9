"""Packed weights of a dtype that a provider of ONNX Runtime cannot widen: one line, the CPU, a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

import mamba_export
from mamba_export import MambaExportError, OrtSession
from mamba_export.backends import registry
from mamba_export.models import MambaConfig, MambaLM, checkpoints

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with weights of fp8."""
    base = tmp_path_factory.mktemp("fp8")
    torch.manual_seed(0)
    checkpoints.save(MambaLM(MambaConfig(d_model=64, n_layer=1, vocab_size=64)), base / "source")
    return mamba_export.export(base / "source", base / "out", weights="fp8")


@pytest.fixture
def _cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that names the CUDA provider. What is asked of it here ends before it computes."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])


@pytest.mark.usefixtures("_cuda")
def test_fp8_on_cuda_is_refused_in_one_line_when_it_is_opened(folder: Path) -> None:
    with pytest.raises(MambaExportError) as error:
        OrtSession(folder, providers=[CUDA, CPU])
    assert "weights of fp8, and ONNX Runtime's CUDA provider has no" in str(error.value)
    assert "--weights int8" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("_cuda")
def test_fp8_runs_on_the_cpu_where_no_provider_is_asked_for(folder: Path) -> None:
    session = OrtSession(folder)
    assert session.provider == CPU
    logits, _ = session.run(np.ones((1, 3), np.int64))
    assert np.isfinite(logits).all()


def test_verify_says_which_whole_model_it_did_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cpu,), _ = registry.present(["cpu"], folder)
    without = replace(cpu, missing_dtypes={"fp8": "it has no fp8"})
    monkeypatch.setattr(registry, "present", lambda *_: ([without], {}))
    report = mamba_export.verify(folder, quick=True)
    assert report.passed
    assert report.not_run["onnxruntime CPU, whole model"] == "it has no fp8"
    assert {check.check for check in report.checks} >= {"weights", "SelectiveScan alone"}
    assert not [check for check in report.checks if check.check.startswith("batch")]
