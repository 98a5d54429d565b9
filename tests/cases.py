"""What the tests of the operators share: random inputs, the cases of the parity grid, and the bounds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from truths import scan_truth

from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference

SCAN = torch.ops.mamba_export.selective_scan
CONV = torch.ops.mamba_export.causal_conv1d
FP32_BOUND = 1e-5
ROUNDING_FLOOR = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
SEQUENCES = (0, 1, 3, 4, 6)  # u, delta, B, C, z among the scan's inputs


def scan_inputs(
    batch: int = 2,
    length: int = 5,
    d_inner: int = 8,
    d_state: int = 16,
    n_groups: int = 1,
    *,
    gate: bool = True,
    dtype: torch.dtype = torch.float32,
    delta_shift: float = 0.0,
) -> list[Tensor | None]:
    """Random inputs in the operator's order; parameters and state in the accumulation dtype."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32

    def low(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(dtype)

    def full(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=acc)

    sequence, per_step = (batch, length, d_inner), (batch, length, n_groups, d_state)
    return [
        low(*sequence),
        low(*sequence) + delta_shift,
        -torch.exp(full(d_inner, d_state)),
        low(*per_step),
        low(*per_step),
        full(d_inner),
        low(*sequence) if gate else None,
        full(d_inner),
        full(batch, d_inner, d_state),
    ]


def conv_inputs(
    batch: int = 2,
    length: int = 5,
    channels: int = 8,
    d_conv: int = 4,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return [
        torch.randn(batch, length, channels, dtype=torch.float64).to(dtype),
        torch.randn(channels, d_conv, dtype=acc),
        torch.randn(channels, dtype=acc),
        torch.randn(batch, channels, d_conv - 1, dtype=torch.float64).to(dtype),
    ]


def double(tensors):
    return [None if t is None else t.double() for t in tensors]


def error(output: Tensor, truth: Tensor) -> float:
    output, truth = output.detach().double(), truth.detach().double()
    return float((output - truth).norm() / truth.norm())


@dataclass(frozen=True)
class Scan:
    """One case of the scan; ``shift`` is added to the step size before softplus."""

    batch: int = 2
    length: int = 65
    d_inner: int = 24
    d_state: int = 16
    groups: int = 1
    gate: bool = True
    reverse: bool = False
    softplus: bool = True
    shift: float = 0.0
    exact_zoh: bool = False

    def __str__(self) -> str:
        words = [f"b{self.batch}", f"l{self.length}", f"d{self.d_inner}", f"n{self.d_state}"]
        words += [f"g{self.groups}"] if self.groups > 1 else []
        words += [] if self.gate else ["ungated"]
        words += ["reverse"] if self.reverse else []
        words += [] if self.softplus else ["plain"]
        words += [f"shift{self.shift:+g}"] if self.shift else []
        words += ["exact"] if self.exact_zoh else []
        return "-".join(words)


@dataclass(frozen=True)
class Conv:
    """One case of the convolution."""

    batch: int = 2
    length: int = 65
    channels: int = 24
    taps: int = 4
    silu: bool = True
    reverse: bool = False

    def __str__(self) -> str:
        words = [f"b{self.batch}", f"l{self.length}", f"d{self.channels}", f"k{self.taps}"]
        words += [] if self.silu else ["linear"]
        words += ["reverse"] if self.reverse else []
        return "-".join(words)


def every_dtype(numbers: Tensor) -> Tensor:
    """The numbers rounded so that fp32, fp16 and bf16 all hold them exactly: one truth serves the three."""
    return numbers.half().bfloat16().float()


@lru_cache(maxsize=2)
def scan_case(case: Scan) -> tuple[list[Tensor | None], tuple[Tensor, Tensor]]:
    """Inputs of a case in fp32, and the truth in float64."""
    torch.manual_seed(hash(case) % 2**31)
    inputs = scan_inputs(
        case.batch, case.length, case.d_inner, case.d_state, case.groups, gate=case.gate
    )
    inputs[1] = inputs[1] + case.shift
    if not case.softplus:  # a negative step would grow without bound
        inputs[1], inputs[7] = 0.1 * inputs[1].abs(), 0.1 * inputs[7].abs()
    inputs = [None if t is None else t.cuda() for t in inputs]
    for index in SEQUENCES:
        if inputs[index] is not None:
            inputs[index] = every_dtype(inputs[index])
    return inputs, scan_truth(*inputs, case.softplus, case.reverse, case.exact_zoh)


@lru_cache(maxsize=2)
def conv_case(case: Conv) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(hash(case) % 2**31)
    inputs = [t.cuda() for t in conv_inputs(case.batch, case.length, case.channels, case.taps)]
    inputs[0], inputs[3] = every_dtype(inputs[0]), every_dtype(inputs[3])
    truth = causal_conv1d_reference(*[t.double() for t in inputs], case.silu, case.reverse)
    return inputs, truth


def low(inputs: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Copies of a scan's inputs, the sequences in ``dtype``."""
    kinds = [dtype if index in SEQUENCES else torch.float32 for index in range(len(inputs))]
    return [
        None if t is None else t.to(kind, copy=True) for t, kind in zip(inputs, kinds, strict=True)
    ]


def low_conv(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """A convolution's inputs, x and the state in ``dtype``."""
    return [inputs[0].to(dtype), *inputs[1:3], inputs[3].to(dtype)]


def bound(truth: Tensor, dtype: torch.dtype) -> float:
    """design.md's: in fp16 and bf16 twice what rounding alone costs, plus a floor."""
    if dtype == torch.float32:
        return FP32_BOUND
    return 2 * error(truth.to(dtype), truth) + ROUNDING_FLOOR[dtype]


def assert_split_equals_whole(
    scan: list[Tensor], conv: list[Tensor], parts: tuple[int, ...], reverse: bool
) -> None:
    """Run both operators part by part, states handed on, and compare that with one run."""
    u, delta, A, B, C, D, z, bias, state = scan
    x, weight, conv_bias, conv_state = conv
    length, dtype = sum(parts), u.dtype
    whole, last = SCAN(*scan, True, reverse)
    conv_whole, conv_last = CONV(*conv, True, reverse)
    ys, conv_ys, start = [], [], 0
    for size in parts:
        cut = slice(start, start + size)
        if reverse:
            cut = slice(length - start - size, length - start)
        start += size
        y, state = SCAN(
            u[:, cut], delta[:, cut], A, B[:, cut], C[:, cut], D, z[:, cut], bias, state, True, reverse
        )  # fmt: skip
        conv_y, conv_state = CONV(x[:, cut], weight, conv_bias, conv_state, True, reverse)
        ys.append(y)
        conv_ys.append(conv_y)
    order = slice(None, None, -1 if reverse else 1)
    allowed = FP32_BOUND if dtype == torch.float32 else ROUNDING_FLOOR[dtype]
    assert error(torch.cat(ys[order], 1), whole) <= allowed
    assert error(state, last) <= FP32_BOUND
    assert error(torch.cat(conv_ys[order], 1), conv_whole) <= allowed
    assert torch.equal(conv_state, conv_last)
