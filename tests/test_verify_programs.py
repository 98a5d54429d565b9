"""verify on programs of a user's own: any inputs and outputs, states that grow, no tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hybrid import Hybrid, export_hybrid
from torch import Tensor, nn

import mamba_export
from mamba_export import contract, verify
from mamba_export.errors import MambaExportError
from mamba_export.operators import selective_scan


def failed(report: verify.Report) -> list[str]:
    return [check.check for check in report.checks if not check.passed]


def test_states_that_grow(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Hybrid()
    out = export_hybrid(module, tmp_path / "out")
    report = verify(out, model=module, quick=True)
    assert failed(report) == []
    assert report.truth == "PyTorch in float64"
    assert module.qkv.weight.dtype == torch.float32, "the caller's module is left alone"
    names = {check.check for check in report.checks}
    assert {"weights", "batch 1, length 65", "split: two halves", "states of 1",
            "SelectiveScanUngated alone"} <= names  # fmt: skip


def test_a_changed_weight_and_a_changed_state_are_caught(tmp_path: Path) -> None:
    module = Hybrid()
    out = export_hybrid(module, tmp_path / "out")
    with torch.no_grad():
        module.delta_bias[3] += 0.1
    report = verify(out, model=module, quick=True, backends=["cpu"])
    assert {"weights", "batch 1, length 65", "split: two halves"} <= set(failed(report))
    whole = next(check for check in report.checks if check.check == "batch 1, length 65")
    assert whole.where.startswith("state scan")


def test_the_module_must_be_given(tmp_path: Path) -> None:
    out = export_hybrid(Hybrid(), tmp_path / "out")
    with pytest.raises(
        MambaExportError, match=r"a module of your own: pass it, as in mamba_export\.verify"
    ):
        verify(out)


class Image(nn.Module):
    """image (batch, 3, height, width) and a class (batch,) -> scores (batch, 5) and brightness (batch,)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.mix = nn.Linear(3, 8)
        self.A = nn.Parameter(-torch.rand(8, 4))
        self.B_C = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        u = self.mix(image.flatten(2).transpose(1, 2)) + self.embedding(label)[:, None]
        B, C = self.B_C(u).chunk(2, dim=-1)
        y, _ = selective_scan(u, u, self.A, B, C, reverse=True)
        return {"scores": self.head(y.mean(1)), "brightness": image.mean((1, 2, 3))}


def test_images_and_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Image()
    out = mamba_export.export(
        module,
        (torch.randn(2, 3, 4, 6), torch.tensor([1, 3])),
        output=tmp_path / "out",
        dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}, "label": {0: "batch"}},
    )
    report = verify(out, model=module)
    assert failed(report) == []
    names = {check.check for check in report.checks}
    assert {"batch 3", "height 17", "width 1", "extreme: inputs of 0"} <= names
    path = out / contract.MODEL_FILE
    model = ir.load(path)
    value = model.graph.initializers["head.bias"]
    array = np.array(value.const_value.numpy())
    array[2] += 0.01
    value.const_value = ir.tensor(array, name="head.bias")
    ir.save(model, path)
    report = verify(out, model=module, quick=True, backends=["cpu"])
    assert failed(report)[0] == "weights"
    assert "head.bias" in report.checks[0].where


class Patches(nn.Module):
    """image (batch, 3, height, width), of at least 8 by 8 -> scores (batch, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, kernel_size=8, stride=8)
        self.A = nn.Parameter(-torch.rand(8, 4))
        self.B_C = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        u = self.patches(image).flatten(2).transpose(1, 2)
        B, C = self.B_C(u).chunk(2, dim=-1)
        y, _ = selective_scan(u, u, self.A, B, C)
        return self.head(y.mean(1))


def test_sizes_that_the_module_itself_refuses_are_left_out_and_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Patches()
    out = mamba_export.export(
        module,
        (torch.randn(2, 3, 16, 24),),
        output=tmp_path / "out",
        dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}},
    )
    report = verify(out, model=module, quick=True, backends=["cpu"])
    assert failed(report) == []
    names = {check.check for check in report.checks}
    assert {"batch 1", "height 17", "width 34"} <= names
    assert not {"height 1", "width 2"} & names
    assert report.not_run["height 1"].startswith("the module refuses it: ")
