"""Export of modules whose sizes are their own: fixed ones, and several lengths of one operator."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mamba_export
from mamba_export.errors import ExportError
from mamba_export.folder import interface
from mamba_export.nn import Mamba, MambaConfig

IMAGES = {0: "batch", 2: "height", 3: "width"}


def loop(x: Tensor) -> Tensor:
    patches = x[:, :, ::2, ::2].flatten(2)
    total = torch.zeros_like(patches[..., 0])
    for step in range(patches.shape[2]):
        total = total + patches[..., step]
    return total


def number(x: Tensor) -> Tensor:
    patches = x[:, :, ::2, ::2]
    return patches.reshape(
        patches.shape[0], patches.shape[1], math.prod(map(int, patches.shape[2:]))
    )


class Of(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            loop,
            r"the module fixes a size that it computes from height and width to 48 \(.*: for step in",
        ),
        (
            number,
            r"it fixes height and width \(test_export_sizes.py, line \d+: .*math.prod",
        ),
    ],
)
def test_size_that_is_computed_and_fixed_is_named(function, said: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 12, 16)
    with pytest.raises(ExportError, match=said):
        mamba_export.export(
            Of(function), (x,), output=tmp_path / "out", dynamic_shapes=({**IMAGES},)
        )
    assert not (tmp_path / "out").exists()
    mamba_export.export(Of(function), (x,), output=tmp_path / "out", dynamic_shapes=({0: "batch"},))


def test_axis_that_must_be_a_multiple_is_no_fixed_size(tmp_path: Path) -> None:
    """A U-Net's sum of a skip and of what was halved and doubled holds for even sizes."""
    module = nn.Sequential(nn.Conv2d(3, 3, 2, 2), nn.ConvTranspose2d(3, 3, 2, 2))
    unet = Of(lambda x: x + module(x))
    x = torch.randn(2, 3, 12, 16)
    out = mamba_export.export(unet, (x,), output=tmp_path / "out", dynamic_shapes=({**IMAGES},))
    x = torch.randn(1, 3, 20, 6)
    with torch.no_grad():
        expected = unet(x)
    np.testing.assert_allclose(mamba_export.OrtSession(out).run(x.numpy())[0], expected, atol=1e-5)


class TwoLengths(nn.Module):
    """One mixer at two lengths and two widths: channels as steps, as TimeMachine has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Mamba(MambaConfig(d_model=4, n_layer=1))
        self.second = Mamba(MambaConfig(d_model=8, n_layer=1))
        self.narrow = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        long, _ = self.second(x)
        short, _ = self.first(self.narrow(long)[:, ::2])
        crossed, _ = self.second(self.narrow(x).transpose(1, 2).repeat(1, 1, 2)[:, :, :8])
        return short.sum((1, 2)) + crossed.sum((1, 2))


def test_operator_at_several_lengths_runs_without_our_library(tmp_path: Path) -> None:
    """Two bodies that are inlined must share no names of sizes: ONNX Runtime would reuse memory by them."""
    torch.manual_seed(0)
    model = TwoLengths().eval()
    x = torch.randn(2, 4, 8)
    out = mamba_export.export(model, (x,), output=tmp_path / "out", dynamic_shapes=({0: "batch"},))
    session = mamba_export.OrtSession(out, native=False)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4, 8)
        with torch.no_grad():
            expected = model(x)
        np.testing.assert_allclose(session.run(x.numpy())[0], expected, rtol=1e-4, atol=1e-5)


def padded(x: Tensor) -> Tensor:
    """SPMamba pads to whole windows and cuts again: PyTorch does not see that 3 channels remain 3."""
    length = x.shape[1]
    whole = math.ceil((length - 4) / 1) + 4
    return nn.functional.pad(x, (0, 0, 0, whole - length))[:, :length].reshape(
        x.shape[0], length, -1
    )


def test_equation_that_pytorch_cannot_prove_is_no_fixed_size(tmp_path: Path) -> None:
    x = torch.randn(2, 9, 3)
    length = torch.export.Dim("length", min=4, max=99)
    out = mamba_export.export(
        Of(lambda x: padded(x) + x), (x,), output=tmp_path / "out", dynamic_shapes=({1: length},)
    )
    x = torch.randn(2, 30, 3)
    np.testing.assert_array_equal(mamba_export.OrtSession(out).run(x.numpy())[0], 2 * x)


@pytest.mark.parametrize(
    ("known", "declared", "same"),
    [
        ((2, "n"), (2, "n"), True),
        ((2, 33), (2, "33*n//n"), True),
        ((2, 33), (2, "n"), False),
        ((2, 33), (2, 34), False),
        ((2,), (2, "33*n//n"), False),
    ],
)
def test_size_that_onnx_runtime_knows_better_is_taken(
    known: tuple, declared: tuple, same: bool
) -> None:
    """Of SPMamba's last axis the metadata has a formula, and ONNX Runtime its number."""
    assert interface._same(("fp32", declared), ("fp32", known)) is same
    assert not interface._same(("fp32", declared), ("fp16", known))
