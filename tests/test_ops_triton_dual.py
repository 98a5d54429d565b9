"""State space duality in Triton against the float64 reference: outputs and every gradient.

On a GPU the whole parity grid runs; elsewhere a few tiny cases run in Triton's interpreter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
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

from mamba_export.contract.operators import LARGEST, STATE_SPACE_DUAL
from mamba_export.operators.state_space_dual.reference import state_space_dual_reference


@dataclass(frozen=True)
class Dual(KernelCase):
    """One case. ``dt`` shifts the step size's input, ``mixed`` makes some steps huge; other names speak."""

    batch: int = 2
    heads: int = 4
    head_dim: int = 64
    d_state: int = 16
    groups: int = 1
    d_skip: int = 1
    gate: bool = True
    log_decay: bool = False
    reverse: bool = False
    softplus: bool = True
    limits: tuple[float, float] = (0.0, LARGEST)
    dt: float = 0.0
    mixed: bool = False
    narrow_state: bool = False


# A new combination of dtype, gate, direction and tile costs 5 to 20 s of compilation: cases share them.
CASES = [
    *[Dual(batch=b, length=n) for b in (1, 3) for n in (1, 2, 63, 64, 65, 1000)],
    Dual(head_dim=80, d_state=64, groups=2, heads=6, d_skip=80, length=130),
    Dual(head_dim=128, d_state=128, heads=2),
    Dual(d_state=256, heads=2, length=300),
    Dual(head_dim=1, d_state=1, heads=3, length=66),
    Dual(head_dim=10, d_state=6, heads=3, length=66),
    Dual("bf16", heads=24, d_state=128, length=513),
    Dual("bf16", heads=5, d_state=128, length=130, strided=True),
    Dual("bf16", heads=8, d_state=128, length=257, groups=2, narrow_state=True),
    Dual("fp16", heads=8, d_state=128, length=257, groups=8),
    Dual("fp16", head_dim=80, heads=6, d_state=64, length=70, groups=3, reverse=True),
    Dual("bf16", batch=1, length=1, heads=24, d_state=128, narrow_state=True),
    Dual(gate=False, reverse=True, log_decay=True, length=200),
    Dual(gate=False, log_decay=True, strided=True),
    Dual(softplus=False),
    Dual(limits=(0.2, 0.9)),
    *[Dual(dt=shift) for shift in (-30.0, -10.0, 30.0, 1e4)],
    *[Dual(dtype, mixed=True, length=200) for dtype in ("fp32", "bf16")],
    Dual(batch=1, heads=2, d_state=128, length=4099),
    *[Dual(dtype, batch=1, length=3001, dt=-8.0) for dtype in ("fp32", "bf16")],  # long memories
]


def check(case: Dual, device: str) -> None:
    """Compare outputs and gradients of one case; raises AssertionError."""
    from mamba_export.operators.state_space_dual import triton_kernels

    normal = normals(device, case.length * 1000 + case.d_state)
    dtype = DTYPES[case.dtype]

    steps = (case.batch, case.length, case.heads)
    matrices = (case.batch, case.length, case.groups, case.d_state)
    states = (case.batch, case.heads, case.head_dim, case.d_state)
    x, z, dy = (normal(*steps, case.head_dim).to(dtype) for _ in range(3))
    B, C = (normal(*matrices).to(dtype) for _ in range(2))
    x, z, B, C = sliced([x, z, B, C])
    dt = normal(*steps) + case.dt
    if case.mixed:  # a step that forgets everything among small ones
        dt = torch.where(normal(*steps) > 1.0, dt.abs() * 1e4, dt - 6.0)
    dt = (dt if case.softplus else dt.abs()).to(dtype)
    x, dt, z, B, C, dy = (spread(t, case.strided) for t in (x, dt, z, B, C, dy))
    bias = 0.1 * normal(case.heads)
    inputs = [
        x, dt, -torch.exp(normal(case.heads)), B, C, normal(case.heads, case.d_skip), z if case.gate else None,
        -normal(*steps).abs() if case.log_decay else None, bias if case.softplus else bias.abs(),
        normal(*states).to(dtype if case.narrow_state else torch.float32),
    ]  # fmt: skip
    attributes = (case.softplus, *case.limits, case.reverse)
    seeds = [dy, normal(*states).to(inputs[-1].dtype)]

    check_operator(
        STATE_SPACE_DUAL, triton_kernels, state_space_dual_reference, inputs, attributes, seeds
    )


class TestGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_parity(self, case: Dual, monkeypatch: pytest.MonkeyPatch) -> None:
        poison(monkeypatch)
        check(case, "cuda")

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_two_parts_equal_one(self, dtype: str) -> None:
        from mamba_export.operators.state_space_dual.triton_kernels import (
            state_space_dual_forward as scan,
        )

        x, z = torch.randn(2, 2, 200, 4, 64, device="cuda").to(DTYPES[dtype]).unbind(0)
        dt = torch.randn(2, 200, 4, device="cuda").to(DTYPES[dtype])
        B, C = torch.randn(2, 2, 200, 1, 128, device="cuda").to(DTYPES[dtype]).unbind(0)
        A, bias = -torch.rand(4, device="cuda"), torch.zeros(4, device="cuda")
        D, state = torch.randn(4, 1, device="cuda"), torch.randn(2, 4, 64, 128, device="cuda")

        def run(part: slice, state: Tensor) -> tuple[Tensor, Tensor]:
            cut = [t[:, part] for t in (x, dt, B, C, z)]
            return scan(
                *cut[:2], A, *cut[2:4], D, cut[4], None, bias, state, True, 0.0, LARGEST, False
            )

        y, last = run(slice(None), state)
        y1, state = run(slice(0, 37), state)
        y2, state = run(slice(37, None), state)
        tolerance = 1e-5 if dtype == "fp32" else torch.finfo(DTYPES[dtype]).eps
        whole = y.double()
        assert (torch.cat([y1, y2], 1).double() - whole).norm() <= tolerance * whole.norm()
        assert (state - last).norm() <= 1e-5 * last.norm()

    def test_the_same_from_run_to_run(self) -> None:
        from mamba_export.operators.state_space_dual.triton_kernels import (
            state_space_dual_backward as backward,
        )

        x, z, dy = torch.randn(3, 2, 300, 8, 64, device="cuda").unbind(0)
        dt = torch.randn(2, 300, 8, device="cuda")
        B, C = torch.randn(2, 2, 300, 2, 64, device="cuda").unbind(0)
        A, bias = -torch.rand(8, device="cuda"), torch.zeros(8, device="cuda")
        D, state = torch.randn(8, 64, device="cuda"), torch.randn(2, 8, 64, 64, device="cuda")
        call = (dy, state, x, dt, A, B, C, D, z, None, bias, state, True, 0.0, LARGEST, False)
        for first, second in zip(backward(*call), backward(*call), strict=True):
            assert (first is None and second is None) or torch.equal(first, second)


def check_tiny() -> None:
    """Body of the subprocess: tiny cases on CPU tensors, in chunks of 16 steps, two at once."""
    from mamba_export.operators.state_space_dual import triton_kernels

    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        patch.setattr(triton_kernels, "CHUNK", 16)
        patch.setattr(triton_kernels, "CHUNKS_AT_ONCE", 2)
        tiny = Dual(batch=1, length=37, heads=2, head_dim=5, d_state=3)
        check(replace(tiny, length=1, d_state=1, head_dim=1), "cpu")
        check(replace(tiny, batch=2, heads=6, groups=2, d_skip=5, strided=True), "cpu")
        check(replace(tiny, gate=False, reverse=True, log_decay=True, length=16), "cpu")
        check(replace(tiny, mixed=True, head_dim=40, d_state=70, limits=(1e-3, 1e4)), "cpu")
        check(replace(tiny, dtype="fp16", dt=-12.0, softplus=False), "cpu")
        check(replace(tiny, dtype="bf16", narrow_state=True, reverse=True), "cpu")
        # Two programs a group, one of which has one head.
        patch.setattr(triton_kernels, "BUSY_PROGRAMS", 4)
        check(replace(tiny, heads=3, length=20), "cpu")


def test_interpreter() -> None:
    interpret(__file__, "")


if __name__ == "__main__" and len(sys.argv) > 1:
    check_tiny()
