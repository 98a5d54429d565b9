"""Every model of this package: how it is made, what it takes, which axes are dynamic, what its file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from third_party.cross_scans import SS2D, AtrousSS2D, CoreScan, VMambaLike, WindowSS2D
from third_party.image_sequences import MambaVisionLike, VimLike
from third_party.restoration import MambaIRLike, MambaIRv2Like
from third_party.sequences import CaduceusLike, HydraLike, Mamba4RecLike, SDMambaLike, SEMambaLike
from third_party.spaces import PointMambaLike, SegMambaLike, UMambaLike

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Style:
    """One model.

    Args:
        make: the model.
        inputs: example tensors by argument, of given sizes.
        axes: ``dynamic_shapes``.
        traced: sizes of the example that is exported.
        others: sizes that it is compared at.
        nodes: our nodes in the file, by operator.
        outputs: names that the file gives its results.
        exact: dtype of the truth; fp32 where the model asserts it.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[..., dict[str, Tensor]]
    axes: Mapping[str, Any]
    traced: Sizes
    others: tuple[Sizes, ...]
    nodes: Mapping[str, int]
    outputs: tuple[str, ...] = ("output",)
    exact: torch.dtype = field(default=torch.float64)


def _image(name: str = "image") -> Callable[..., dict[str, Tensor]]:
    return lambda *sizes: {name: torch.randn(sizes[0], 3, *sizes[1:])}


_POINTS = Dim("points")
_ANY_IMAGE = {"image": {0: "batch", 2: "height", 3: "width"}}


def _points(batch: int, count: int) -> dict[str, Tensor]:
    orders = torch.stack([torch.randperm(count) for _ in range(2 * batch)])
    return {"pts": torch.randn(batch, count, 3), "order": orders.view(batch, 2 * count)}


def _speech(batch: int, frequencies: int, frames: int) -> dict[str, Tensor]:
    shape = (batch, frequencies, frames)
    return {"noisy_mag": torch.rand(shape), "noisy_pha": torch.randn(shape)}


def _items(batch: int, length: int) -> dict[str, Tensor]:
    return {
        "item_seq": torch.randint(0, 20, (batch, length)),
        "item_seq_len": torch.randint(1, length + 1, (batch,)),
    }


STYLES: dict[str, Style] = {
    "VMamba": Style(
        lambda: VMambaLike(SS2D, SS2D),
        _image(),
        _ANY_IMAGE,
        (2, 16, 24),
        ((1, 8, 8), (3, 20, 36)),
        {"SelectiveScanUngated": 2},
    ),
    "EfficientVMamba": Style(
        lambda: VMambaLike(AtrousSS2D, CoreScan),
        _image(),
        {"image": {0: "batch", 2: 4 * Dim("rows"), 3: 4 * Dim("columns")}},  # no padding is traced
        (2, 16, 24),
        ((1, 8, 8), (3, 20, 36)),
        {"SelectiveScanUngated": 2},
    ),
    "LocalMamba": Style(
        lambda: VMambaLike(WindowSS2D),
        _image(),
        _ANY_IMAGE,
        (2, 16, 24),
        ((1, 8, 8), (3, 22, 36), (1, 24, 40)),
        {"SelectiveScanUngated": 1},
    ),
    "Vim": Style(
        VimLike,
        _image(),
        _ANY_IMAGE,
        (2, 32, 48),
        ((1, 16, 16), (3, 24, 56)),
        {"CausalConv1d": 4, "SelectiveScan": 4},
    ),
    "MambaVision": Style(
        MambaVisionLike,
        _image(),
        _ANY_IMAGE,
        (2, 16, 24),
        ((1, 14, 14), (3, 30, 40)),
        {"SelectiveScanUngated": 1},
    ),
    "MambaIR": Style(
        MambaIRLike,
        _image("x"),
        {"x": {0: "batch", 2: "height", 3: "width"}},
        (2, 6, 8),
        ((1, 5, 7), (3, 11, 4)),
        {"SelectiveScanUngated": 1},
        exact=torch.float32,
    ),
    "MambaIRv2": Style(
        MambaIRv2Like,
        lambda *sizes: {"x": torch.randn(1, 3, *sizes)},
        {"x": {2: "height", 3: "width"}},
        (6, 8),
        ((5, 7), (11, 4)),
        {"SelectiveScanUngated": 1},
    ),
    "SEMamba": Style(
        SEMambaLike,
        _speech,
        {name: {0: "batch", 2: "frames"} for name in ("noisy_mag", "noisy_pha")},
        (2, 9, 6),
        ((1, 9, 11), (3, 9, 4)),
        {"CausalConv1d": 4, "SelectiveScan": 4},
        ("output_0", "output_1"),
    ),
    "Hydra": Style(
        HydraLike,
        lambda batch, length: {"u": torch.randn(batch, length, 16)},
        {"u": {0: "batch", 1: "length"}},
        (2, 20),  # not on a chunk's grid, nor are the others
        ((1, 7), (3, 65), (1, 300)),
        {"StateSpaceDual": 1, "GatedRmsNorm": 1},
    ),
    "S-D-Mamba": Style(
        SDMambaLike,
        lambda batch, variates: {
            "x_enc": torch.randn(batch, 12, variates),
            "x_mark_enc": torch.randn(batch, 12, 4),
        },
        {"x_enc": {0: "batch", 2: "variates"}, "x_mark_enc": {0: "batch"}},
        (2, 7),
        ((1, 3), (3, 21)),
        {"CausalConv1d": 2, "SelectiveScan": 2},
    ),
    "Caduceus": Style(
        CaduceusLike,
        lambda *sizes: {"input_ids": torch.randint(0, 6, sizes)},
        {"input_ids": {0: "batch", 1: "length"}},
        (2, 7),
        ((1, 1), (3, 33)),
        {"CausalConv1d": 4, "SelectiveScan": 4},
    ),
    "Mamba4Rec": Style(
        Mamba4RecLike,
        _items,
        {"item_seq": {0: "batch", 1: "length"}, "item_seq_len": {0: "batch"}},
        (2, 7),
        ((1, 1), (3, 33)),
        {"CausalConv1d": 1, "SelectiveScan": 1},
    ),
    "SegMamba": Style(
        SegMambaLike,
        lambda batch, *sizes: {"x_in": torch.randn(batch, 2, *sizes)},
        {"x_in": {0: "batch", 2: "depth", 3: "height", 4: "width"}},
        (2, 4, 8, 8),
        ((1, 8, 4, 8), (3, 4, 16, 8)),
        {"CausalConv1d": 3, "SelectiveScan": 3},
    ),
    "U-Mamba": Style(
        UMambaLike,
        lambda batch, *sizes: {"x": torch.randn(batch, 1, *sizes)},
        {"x": {0: "batch", 2: "depth", 3: "height", 4: "width"}},
        (2, 4, 6, 8),
        ((1, 8, 4, 6), (3, 2, 10, 4)),
        {"CausalConv1d": 1, "SelectiveScan": 1},
    ),
    "PointMamba": Style(
        PointMambaLike,
        _points,
        {"pts": {0: "batch", 1: _POINTS}, "order": {0: "batch", 1: 2 * _POINTS}},
        (2, 6),
        ((1, 3), (3, 19)),
        {"CausalConv1d": 2, "SelectiveScan": 2},
    ),
}
