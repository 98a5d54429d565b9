"""The gated RMSNorm in Triton against the float64 reference: output and every gradient.

On a GPU all cases run; elsewhere a few tiny ones run in Triton's interpreter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from triton_parity import (
    DTYPES,
    assert_parity,
    gpu,
    gradients,
    interpret,
    leaf,
    poison,
    sliced,
    spread,
)

from mamba_export.operators.gated_rms_norm.reference import gated_rms_norm_reference


@dataclass(frozen=True)
class Norm:
    """One case."""

    dtype: str = "fp32"
    batch: int = 2
    length: int = 65
    groups: int = 1
    width: int = 1536
    norm_first: bool = False
    strided: bool = False

    def __str__(self) -> str:
        words = [
            self.dtype,
            f"b{self.batch}",
            f"l{self.length}",
            f"g{self.groups}",
            f"w{self.width}",
        ]
        return "-".join([*words, *(n for n in ("norm_first", "strided") if getattr(self, n))])


CASES = [
    *[Norm(batch=b, length=n) for b in (1, 3) for n in (1, 2, 65, 1000)],
    *[Norm(width=w, groups=g) for w in (1, 8, 130, 5000) for g in (1, 8)],
    *[Norm(dtype, norm_first=True, groups=2) for dtype in DTYPES],
    *[Norm(dtype, strided=True) for dtype in ("fp32", "bf16")],
    Norm("bf16", width=8192, length=300),
    Norm("fp16", width=640, groups=8, length=300),
]


def check(case: Norm, device: str) -> None:
    """Compare the output and gradients of one case; raises AssertionError."""
    from mamba_export.operators.gated_rms_norm import triton_kernels

    random = torch.Generator(device).manual_seed(case.length * 1000 + case.width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device)

    shape = (case.batch, case.length, case.groups, case.width)
    x, z, dy = (normal(*shape).to(DTYPES[case.dtype]) for _ in range(3))
    x, z = sliced([x, z])
    x, z, dy = (spread(t, case.strided) for t in (x, z, dy))
    inputs = [x, z, normal(case.groups, case.width)]
    attributes = (1e-3, case.norm_first)

    results = [triton_kernels.gated_rms_norm_forward(*inputs, *attributes)]
    results += triton_kernels.gated_rms_norm_backward(dy, *inputs, *attributes)
    compared = []
    for precision in (None, torch.float64):
        leaves = [leaf(t, precision) for t in inputs]
        y = gated_rms_norm_reference(*leaves, *attributes)
        compared.append([y, *gradients((y,), leaves, [dy])])
    assert_parity(["y", "dx", "dz", "dweight"], results, *compared, forward=1)


class TestGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_parity(self, case: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
        poison(monkeypatch)
        check(case, "cuda")


def check_tiny() -> None:
    """Body of the subprocess: tiny cases on CPU tensors, in blocks of 8 channels and several rows a program."""
    from mamba_export.operators.gated_rms_norm import triton_kernels

    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        patch.setattr(triton_kernels, "MOST_BLOCK", 8)
        patch.setattr(triton_kernels, "BUSY_PROGRAMS", 4)
        tiny = Norm(length=5, width=13)
        check(tiny, "cpu")
        check(replace(tiny, norm_first=True, groups=3, strided=True), "cpu")
        check(replace(tiny, dtype="bf16", batch=1, length=1, width=1), "cpu")
        check(replace(tiny, dtype="fp16", norm_first=True, width=8), "cpu")


def test_interpreter() -> None:
    interpret(__file__, "")


if __name__ == "__main__" and len(sys.argv) > 1:
    check_tiny()
