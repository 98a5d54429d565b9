"""OrtSession on an NVIDIA GPU: every dtype, states on the device, the same text as the CPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_provider import NEEDS_CUDA

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.export import export
from mamba_export.models import MambaLM

pytestmark = NEEDS_CUDA


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-3), ("fp16", 2e-2), ("bf16", 1e-1)])
def test_cuda_is_the_model(tiny_model: MambaLM, tmp_path: Path, dtype: str, bound: float) -> None:
    session = OrtSession(export(tiny_model, tmp_path / dtype, dtype=dtype))
    assert session.provider == "CUDAExecutionProvider"
    ids = np.random.default_rng(0).integers(0, 256, (3, 33))
    with torch.no_grad():
        expected = tiny_model(torch.from_numpy(ids))[0].numpy()

    def close(found: np.ndarray, wanted: np.ndarray) -> None:
        error = np.abs(found.astype(np.float32) - wanted).max() / np.abs(expected).max()
        assert error <= bound

    close(session.run(ids)[0], expected)
    first, state = session.run(ids[:, :20])
    assert {tensor.device.name for tensor in state.tensors} == {"cuda"}
    close(first, expected[:, :20])
    through_numpy = session.state_from_numpy(state.numpy())
    for one in (
        state,
        through_numpy,
        session.concatenate([state.select([0]), state.select([1, 2])]),
    ):
        close(session.run(ids[:, 20:], one)[0], expected[:, 20:])
    stepper = session.stepper(state)
    for position in range(20, 33):
        close(stepper.step(ids[:, position]), expected[:, position])


def test_generation_is_the_cpus(tiny_model: MambaLM, tmp_path: Path) -> None:
    folder = export(tiny_model, tmp_path / "out")
    prompts = [[1, 2, 3], [4], [5, 6, 7]]
    cuda, cpu = (
        [one.tokens for one in session.generate(prompts, max_new_tokens=50)]
        for session in (OrtSession(folder), OrtSession(folder, providers=["CPUExecutionProvider"]))
    )
    assert cuda == cpu
