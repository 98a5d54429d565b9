"""Triton kernels against the float64 reference: outputs and every gradient.

On a GPU the whole parity grid runs. Elsewhere a few tiny cases run in Triton's interpreter, in a subprocess,
because the interpreter is chosen by an environment variable when Triton is first imported.
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

from mamba_export.contract.operators import CAUSAL_CONV1D, SELECTIVE_SCAN
from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.selective_scan.reference import selective_scan_reference


@dataclass(frozen=True)
class Scan(KernelCase):
    """One case of the scan. ``delta`` shifts the step size's input; the other names speak."""

    d_inner: int = 64
    d_state: int = 16
    groups: int = 1
    gate: bool = True
    reverse: bool = False
    softplus: bool = True
    delta: float = 0.0
    exact_zoh: bool = False


@dataclass(frozen=True)
class Conv(KernelCase):
    """One case of the convolution."""

    channels: int = 70
    taps: int = 4
    silu: bool = True
    reverse: bool = False


# A new combination of dtype, gate, direction, softplus and d_state costs 5 to 10 s of compilation: the cases
# share combinations, and try others in pairs rather than all.
SCAN_CASES = [
    *[Scan(batch=b, length=n) for b in (1, 3) for n in (1, 2, 63, 64, 65, 1000)],
    *[Scan(d_state=n) for n in (1, 8, 64, 256)],
    Scan(d_inner=48, d_state=5, groups=2),
    Scan(d_inner=128, groups=2),
    Scan(strided=True),
    Scan(gate=False, reverse=True, length=1000),
    Scan("fp16", reverse=True),
    Scan("fp16", reverse=True, length=1000, groups=2),
    Scan("bf16"),
    Scan("bf16", length=1000, groups=2),
    Scan("bf16", batch=1, length=1),
    Scan("bf16", gate=False, reverse=True, strided=True),
    Scan(softplus=False),
    *[Scan(delta=shift) for shift in (-30.0, -10.0, 30.0, 1e4)],
    Scan("bf16", delta=-10.0),
    Scan("bf16", delta=30.0),
    *[Scan(delta=shift, exact_zoh=True) for shift in (-16.0, -4.0, 0.0, 30.0)],
    *[Scan(length=n, exact_zoh=True) for n in (1, 2, 1000)],
    Scan("bf16", reverse=True, groups=2, exact_zoh=True),
    Scan(batch=64, length=100, d_inner=512),
    Scan(batch=1, length=300, d_inner=1536),
    # Long memories: of 3001 steps of about 3e-4, a state keeps what the first brought.
    *[Scan(dtype, batch=1, length=3001, delta=-8.0) for dtype in ("fp32", "bf16")],
    Scan("fp16", batch=1, length=3001, delta=-8.0, reverse=True),
    Scan(batch=1, length=3001, delta=-8.0, exact_zoh=True),
]
CONV_CASES = [
    *[Conv(batch=b, length=n) for b in (1, 3) for n in (1, 2, 63, 64, 65, 1000)],
    *[Conv(taps=k, length=n) for k in (2, 3, 8) for n in (1, 5, 130)],
    *[Conv(dtype, reverse=True) for dtype in ("fp16", "bf16")],
    *[Conv(dtype, silu=False, strided=True) for dtype in DTYPES],
    Conv(reverse=True, length=2, taps=8),
    Conv(batch=64, length=1200, channels=64),
]


def check_scan(case: Scan, device: str) -> None:
    """Compare outputs and gradients of one case; raises AssertionError."""
    from mamba_export.operators.selective_scan import triton_kernels

    normal = normals(device, case.length * 1000 + case.d_state)
    dtype = DTYPES[case.dtype]

    sequence = (case.batch, case.length, case.d_inner)
    state = (case.batch, case.d_inner, case.d_state)
    u, z, dy = (normal(*sequence).to(dtype) for _ in range(3))
    delta = normal(*sequence)
    delta = (delta + case.delta if case.softplus else delta.abs()).to(dtype)
    B, C = (normal(case.batch, case.length, case.groups, case.d_state).to(dtype) for _ in range(2))
    u, z, B, C = sliced([u, z, B, C])
    u, delta, z, B, C, dy = (spread(t, case.strided) for t in (u, delta, z, B, C, dy))
    A = -torch.exp(normal(case.d_inner, case.d_state))
    bias = 0.1 * normal(case.d_inner)
    inputs = [u, delta, A, B, C, normal(case.d_inner), z if case.gate else None]
    inputs += [bias if case.softplus else bias.abs(), normal(*state)]
    flags = (case.softplus, case.reverse, case.exact_zoh)
    seeds = [dy, normal(*state)]

    check_operator(SELECTIVE_SCAN, triton_kernels, selective_scan_reference, inputs, flags, seeds)


def check_conv(case: Conv, device: str) -> None:
    """Compare outputs and gradients of one case; raises AssertionError."""
    from mamba_export.operators.causal_conv1d import triton_kernels

    normal = normals(device, case.length * 1000 + case.taps)
    dtype = DTYPES[case.dtype]

    sequence, state = (
        (case.batch, case.length, case.channels),
        (case.batch, case.channels, case.taps - 1),
    )
    x, _ = sliced([normal(*sequence).to(dtype) for _ in range(2)])
    x, initial = spread(x, case.strided), spread(normal(*state).to(dtype), case.strided)
    inputs = [x, normal(case.channels, case.taps), normal(case.channels), initial]
    seeds = [normal(*sequence).to(dtype), normal(*state).to(dtype)]
    flags = (case.silu, case.reverse)

    check_operator(CAUSAL_CONV1D, triton_kernels, causal_conv1d_reference, inputs, flags, seeds)


class TestGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("case", SCAN_CASES, ids=str)
    def test_scan(self, case: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
        poison(monkeypatch)
        check_scan(case, "cuda")

    @pytest.mark.parametrize("case", CONV_CASES, ids=str)
    def test_conv(self, case: Conv, monkeypatch: pytest.MonkeyPatch) -> None:
        poison(monkeypatch)
        check_conv(case, "cuda")

    def test_scan_in_two_parts_equals_one(self) -> None:
        from mamba_export.operators.selective_scan.triton_kernels import (
            selective_scan_forward as scan,
        )

        u, delta, z = torch.randn(3, 2, 100, 64, device="cuda").unbind(0)
        B, C = torch.randn(2, 2, 100, 1, 16, device="cuda").unbind(0)
        A, D = -torch.rand(64, 16, device="cuda"), torch.randn(64, device="cuda")
        bias, state = torch.zeros(64, device="cuda"), torch.randn(2, 64, 16, device="cuda")

        def run(steps: slice, state: Tensor) -> tuple[Tensor, Tensor]:
            parts = [t[:, steps] for t in (u, delta, B, C, z)]
            return scan(*parts[:2], A, *parts[2:4], D, parts[4], bias, state, True, False, False)

        y, last = run(slice(None), state)
        y1, state = run(slice(0, 37), state)
        y2, state = run(slice(37, None), state)
        assert torch.equal(torch.cat([y1, y2], dim=1), y)
        assert torch.equal(state, last)

    @pytest.mark.parametrize("d_inner", [64, 24576])  # blocks of few channels and of many
    def test_a_step_of_zero_leaves_a_state_as_it_is(self, d_inner: int) -> None:
        from mamba_export.operators.selective_scan.triton_kernels import (
            selective_scan_forward as scan,
        )

        u, B = (
            torch.randn(1, 100, d_inner, device="cuda"),
            torch.randn(1, 100, 1, 16, device="cuda"),
        )
        zero, none = torch.zeros_like(u), torch.zeros(d_inner, device="cuda")
        A, state = (
            -torch.rand(d_inner, 16, device="cuda"),
            torch.randn(1, d_inner, 16, device="cuda"),
        )
        last = scan(u, zero, A, B, B, none, None, none, state, False, False, False)[1]
        assert torch.equal(last, state)

    def test_gradients_are_the_same_from_run_to_run(self) -> None:
        from mamba_export.operators.selective_scan.triton_kernels import (
            selective_scan_backward as backward,
        )

        u, delta, z, dy = torch.randn(4, 4, 200, 128, device="cuda").unbind(0)
        B, C = torch.randn(2, 4, 200, 1, 16, device="cuda").unbind(0)
        A, D = -torch.rand(128, 16, device="cuda"), torch.randn(128, device="cuda")
        bias, state = torch.zeros(128, device="cuda"), torch.randn(4, 128, 16, device="cuda")
        args = (dy, state, u, delta, A, B, C, D, z, bias, state, True, False, False)
        for first, second in zip(backward(*args), backward(*args), strict=True):
            assert torch.equal(first, second)


def check_tiny(operator: str) -> None:
    """Body of the subprocess: every tiny case of one operator on CPU tensors."""
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        if operator == "scan":
            from mamba_export.operators.selective_scan import triton_kernels

            tiny = Scan(batch=1, length=9, d_inner=8, d_state=4)
            check_scan(replace(tiny, length=1, d_state=1), "cpu")
            check_scan(replace(tiny, batch=2, d_inner=12, d_state=3, groups=2, strided=True), "cpu")
            check_scan(replace(tiny, dtype="bf16", gate=False, reverse=True), "cpu")
            check_scan(replace(tiny, dtype="fp16", delta=-12.0), "cpu")
            check_scan(replace(tiny, d_inner=40, softplus=False), "cpu")
            # Segments of one chunk, so that a short sequence takes the path of a long one.
            patch.setattr(triton_kernels, "MIN_SEGMENT_CHUNKS", 1)
            check_scan(replace(tiny, length=21), "cpu")
            check_scan(replace(tiny, length=16, gate=False, reverse=True), "cpu")
            check_scan(replace(tiny, length=17, exact_zoh=True), "cpu")
            check_scan(replace(tiny, length=3, delta=-12.0, gate=False, exact_zoh=True), "cpu")
        else:
            from mamba_export.operators.causal_conv1d import triton_kernels

            tiny = Conv(batch=2, length=35, channels=5)
            check_conv(tiny, "cpu")
            check_conv(replace(tiny, length=2, taps=8, reverse=True), "cpu")
            check_conv(replace(tiny, dtype="bf16", silu=False, strided=True), "cpu")
            patch.setattr(triton_kernels, "MAX_PARTIALS", 1)
            check_conv(replace(tiny, length=70, taps=2, reverse=True), "cpu")


@pytest.mark.parametrize("operator", ["scan", "conv"])
def test_interpreter(operator: str) -> None:
    interpret(__file__, operator)


if __name__ == "__main__":
    check_tiny(sys.argv[1])
