"""The gated RMSNorm in Triton against the float64 reference: output and every gradient.

On a GPU all cases run; elsewhere a few tiny ones run in Triton's interpreter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import pytest
from triton_parity import (
    DTYPES,
    KernelCase,
    check_operator,
    gpu,
    interpret,
    normals,
    poison,
    sliced,
    spread,
)

from mamba_export.contract.operators import GATED_RMS_NORM
from mamba_export.operators.gated_rms_norm.reference import gated_rms_norm_reference


@dataclass(frozen=True)
class Norm(KernelCase):
    """One case."""

    batch: int = 2
    groups: int = 1
    width: int = 1536
    norm_first: bool = False


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

    normal = normals(device, case.length * 1000 + case.width)

    shape = (case.batch, case.length, case.groups, case.width)
    x, z, dy = (normal(*shape).to(DTYPES[case.dtype]) for _ in range(3))
    x, z = sliced([x, z])
    x, z, dy = (spread(t, case.strided) for t in (x, z, dy))
    inputs = [x, z, normal(case.groups, case.width)]
    attributes = (1e-3, case.norm_first)

    check_operator(
        GATED_RMS_NORM, triton_kernels, gated_rms_norm_reference, inputs, attributes, [dy]
    )


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
