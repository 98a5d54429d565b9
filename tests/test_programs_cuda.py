"""Programs with both kinds of state in ONNX Runtime on an NVIDIA GPU: any split is the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hybrid import WIDTH, Hybrid, export_hybrid, truth

from mamba_export import OrtSession

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(),
        reason="the installed onnxruntime has no CUDAExecutionProvider",
    ),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hybrid, Path]:
    torch.manual_seed(0)
    module = Hybrid()
    return module, export_hybrid(module, tmp_path_factory.mktemp("programs") / "hybrid")


@pytest.mark.parametrize("native", [True, False], ids=["kernels", "bodies"])
@pytest.mark.parametrize("parts", [(9,), (1,) * 9, (4, 5)], ids=lambda p: "-".join(map(str, p)))
def test_any_split_is_the_whole(
    exported: tuple[Hybrid, Path], parts: tuple[int, ...], native: bool
) -> None:
    module, folder = exported
    session = OrtSession(folder, providers=["CUDAExecutionProvider"], native=native)
    x = np.random.default_rng(0).standard_normal((3, sum(parts), WIDTH), dtype=np.float32)
    expected = truth(module, x)
    state, outputs = None, []
    for part in np.split(x, np.cumsum(parts)[:-1], axis=1):
        y, state = session.run(part, state)
        outputs.append(y)
    assert state is not None
    arrays = dict(zip(("keys", "values", "conv", "scan"), state.numpy(), strict=True))
    arrays["y"] = np.concatenate(outputs, axis=1)
    for name, array in arrays.items():
        error = np.linalg.norm(array - expected[name]) / np.linalg.norm(expected[name])
        assert error <= 1e-5, name
