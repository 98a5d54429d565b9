"""What the tests of Triton kernels share: bounds, inputs, poisoned memory, and the interpreter.

The interpreter is chosen by an environment variable when Triton is first imported: a subprocess is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_export.contract.spec import Operator

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORWARD_BOUND, BACKWARD_BOUND = 1e-5, 1e-4


@dataclass(frozen=True)
class KernelCase:
    """What every operator's cases have; a case's name tells what is not as usual."""

    dtype: str = "fp32"
    batch: int = 3
    length: int = 65
    strided: bool = False

    def __str__(self) -> str:
        words = [self.dtype, f"b{self.batch}", f"l{self.length}"]
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in ("dtype", "batch", "length") or value == one.default:
                continue
            words.append(
                f"{'' if value else 'no_'}{one.name}"
                if isinstance(value, bool)
                else f"{one.name}{value}"
            )
        return "-".join(words)


def normals(device: str, seed: int) -> Callable[..., Tensor]:
    """A function that draws from a normal distribution: normal(*shape), fp32."""
    random = torch.Generator(device).manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=random, device=device)


def check_operator(
    row: Operator,
    kernels: ModuleType,
    reference: Callable[..., Any],
    inputs: list[Any],
    attributes: Sequence[Any],
    seeds: list[Tensor],
) -> None:
    """Hold an operator's outputs and its inputs' gradients to the reference in float64; raises AssertionError.

    Args:
        row: of the operator, whose functions in ``kernels`` have its name.
        kernels: its Triton kernels.
        reference: its definition.
        inputs, attributes: of the call, in the row's order.
        seeds: gradients of the outputs.
    """
    results = _tuple(getattr(kernels, f"{row.torch_name}_forward")(*inputs, *attributes))
    backward = getattr(kernels, f"{row.torch_name}_backward")
    results += tuple(backward(*seeds, *inputs, *attributes))
    compared = []
    for precision in (None, torch.float64):
        leaves = [leaf(t, precision) for t in inputs]
        outputs = _tuple(reference(*leaves, *attributes))
        compared.append([*outputs, *gradients(outputs, leaves, seeds)])
    names = [*(one.name for one in row.outputs), *(f"d{one.name}" for one in row.inputs)]
    assert_parity(names, results, *compared, forward=len(row.outputs))


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def relative_error(result: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth; NaN anywhere gives infinity."""
    error = (result.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-300)
    return float("inf") if error.isnan() else error.item()


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor | None], seeds: list[Tensor]):
    """Gradients of the inputs, None where an input is None."""
    present = [t for t in inputs if t is not None]
    grads = iter(
        torch.autograd.grad(
            outputs, present, [s.to(o.dtype) for s, o in zip(seeds, outputs, strict=True)]
        )
    )
    return [None if t is None else next(grads) for t in inputs]


def leaf(t: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if t is None else t.detach().to(dtype or t.dtype).clone().requires_grad_()


def assert_parity(names, results, reference, truth, forward: int) -> None:
    """Hold results to the project's bounds; the first ``forward`` of them are outputs, then gradients.

    fp32 tensors: an absolute bound. fp16 and bf16: twice the error of the same-dtype reference, and half a
    unit in the last place, since even the exact result has to be rounded.
    """
    problems = []
    for i, (name, result, same, exact) in enumerate(
        zip(names, results, reference, truth, strict=True)
    ):
        if exact is None:
            assert result is None, f"{name} should be None"
            continue
        assert result.shape == exact.shape, f"{name}: {result.shape}, not {exact.shape}"
        assert result.dtype == same.dtype, f"{name}: {result.dtype}, not {same.dtype}"
        if result.dtype == torch.float32:
            bound = FORWARD_BOUND if i < forward else BACKWARD_BOUND
        else:
            bound = 2 * relative_error(same, exact) + torch.finfo(result.dtype).eps / 2
        error = relative_error(result, exact)
        if not error <= bound:
            problems.append(f"{name}: error {error:.2e} > {bound:.2e}")
    assert not problems, "; ".join(problems)


def spread(t: Tensor | None, strided: bool) -> Tensor | None:
    """The same values, as a slice of a larger tensor if ``strided``; then no dimension is dense."""
    if t is None or not strided:
        return t
    wide = torch.full(
        (*t.shape[:-1], 2 * t.shape[-1]), float("nan"), dtype=t.dtype, device=t.device
    )
    wide[..., ::2] = t
    return wide[..., ::2]


def sliced(parts: list[Tensor]) -> list[Tensor]:
    """The same values as slices of one projection's output, as a block hands them over."""
    flat = torch.cat([p.flatten(2) for p in parts], dim=2)
    pieces = flat.split([p.flatten(2).shape[2] for p in parts], dim=2)
    return [piece.unflatten(2, p.shape[2:]) for piece, p in zip(pieces, parts, strict=True)]


def poison(patch: pytest.MonkeyPatch) -> None:
    """Let ``torch.empty`` return NaN, so that an element that no kernel writes shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs) -> Tensor:
        t = empty(*args, **kwargs)
        return t.fill_(float("nan")) if t.is_floating_point() else t

    patch.setattr(torch, "empty", poisoned)


def interpret(file: str, operator: str) -> None:
    """Run a test file as a program on CPU tensors, in Triton's interpreter; it says what is wrong."""
    pytest.importorskip("triton", reason="Triton is not installed")
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, file, operator], env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
