"""Parity: the one tolerance table, and how errors are measured and judged.

The truth is PyTorch on the operators' references, in float64 (see ``truth``). In fp32 the error has a fixed
bound. In fp16 and bf16 the bound follows what the dtype costs anyway: twice the error of the same-dtype
PyTorch reference, plus a rounding floor (the habit of flash-attention's tests). Where matrices are packed, the
truth takes what their codes stand for, and the loss against the source as it is has a bound of its own.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mamba_export.contract.spec import R, S, Tensor

FP32_BOUND = {"operator": 1e-5, "model": 1e-4}
"""Largest ||output - truth|| / ||truth|| in fp32: of one operator, and of a whole model's outputs."""

ROUNDING_FLOOR = {"fp16": 2.0**-10, "bf16": 2.0**-7}
"""One unit in the last place: what storing a result in the dtype may cost."""

LOW_PRECISION_FACTOR = 2.0
"""Error allowed in fp16 and bf16, as a multiple of the same-dtype PyTorch reference's own error."""

LENGTHS = (1, 2, 63, 64, 65, 1000)
BATCHES = (1, 3)
"""Lengths and batches of whole models that every backend is checked at."""


@dataclass(frozen=True)
class Check:
    """One comparison: what ran where, its error, its bound, and the place of the largest difference."""

    backend: str
    check: str
    error: float
    bound: float
    where: str = ""
    failure: str = ""
    """Why it failed before anything could be measured (a wrong shape, NaN, an exception)."""

    @property
    def passed(self) -> bool:
        """Whether the error is within its bound; NaN never is."""
        return not self.failure and self.error <= self.bound

    def to_json(self) -> dict[str, Any]:
        """The check as plain values; an infinite or missing number is null."""
        content = asdict(self)
        for key in ("error", "bound"):
            content[key] = content[key] if math.isfinite(content[key]) else None
        return {**content, "passed": self.passed}


@dataclass
class Report:
    """All checks of one verification, and what was not run."""

    folder: str
    dtype: str
    truth: str = ""
    """What whole models were compared with: "PyTorch in float64", or in fp32 and why."""
    checks: list[Check] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    """Backends, checks and sizes that were not run, each with the reason."""
    weights: str | None = None
    """How the matrices of products are stored; None for the dtype."""
    discretization: tuple[str, ...] | None = None
    """How the scans discretise B, as the metadata says."""

    @property
    def passed(self) -> bool:
        """Whether there was at least one check and none failed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "folder": self.folder,
            "dtype": self.dtype,
            "weights": self.weights,
            "discretization": None if self.discretization is None else list(self.discretization),
            "truth": self.truth,
            "passed": self.passed,
            "checks": [check.to_json() for check in self.checks],
            "not_run": self.not_run,
        }


PACKED_ERROR = {"int4": 0.25, "int8": 0.02, "fp8": 0.05}
"""Largest ||stored - source|| / ||source|| of a matrix that is stored as codes of this kind."""

PACKED_LOSS = {"int4": 0.03, "int8": 0.01, "fp8": 0.01}
"""Bits a byte of text that a language model may lose where its products' matrices are stored as such codes."""


def bound(kind: str, dtype: str, reference_error: float, *, packed: bool = False) -> float:
    """Error allowed.

    Args:
        kind: "operator" or "model".
        dtype: "fp32", "fp16" or "bf16".
        reference_error: error of the same-dtype PyTorch reference; unused in fp32.
        packed: the file's matrices are packed, and the reference rounds the inputs of its products, as a
            runtime may: its error then counts in fp32 too.
    """
    if dtype == "fp32":
        rounding = LOW_PRECISION_FACTOR * reference_error if packed else 0.0
        return FP32_BOUND[kind] + rounding
    return LOW_PRECISION_FACTOR * reference_error + ROUNDING_FLOOR[dtype]


def allowed_of(
    row: Tensor,
    output_dtype: str,
    dtype: str,
    reference_error: float,
    *,
    exact_products: bool = False,
) -> float:
    """Error allowed of an operator's output.

    An fp32 output behind values that are rounded to T (a layer's states) is as exact as T, which the
    same-dtype reference shows: then it has T's bound. So has one of class R or S on a backend whose tensor
    cores make it of products of numbers in T. Else, and on CPUs always, it has fp32's bound, whatever T is.

    Args:
        row: the output's.
        output_dtype: the dtype that it is stored in.
        dtype: T.
        reference_error: error of the same-dtype PyTorch reference.
        exact_products: the backend multiplies numbers of 16 bits in fp32.
    """
    is_exact = exact_products or row.dtype not in (R, S)
    if output_dtype == "fp32" and is_exact and reference_error <= FP32_BOUND["operator"]:
        return bound("operator", "fp32", reference_error)
    return bound("operator", dtype, reference_error)


def relative_error(output: np.ndarray, truth: np.ndarray) -> float:
    """||output - truth|| / ||truth||, in float64; NaN anywhere gives NaN, which passes no bound."""
    output, truth = output.astype(np.float64), truth.astype(np.float64)
    scale = float(np.linalg.norm(truth))
    return float(np.linalg.norm(output - truth)) / (scale if scale > 0 else 1.0)


def compare(
    backend: str,
    check: str,
    output: np.ndarray,
    truth: np.ndarray,
    allowed: float,
    *,
    name: str = "",
) -> Check:
    """Compare shapes, then NaN, then values; a mismatch of shape or a NaN fails whatever the bound.

    Args:
        backend: who computed ``output``.
        check: what was computed.
        output, truth: arrays; any dtype that numpy can widen.
        allowed: bound of the relative error.
        name: of the tensor, for the report.
    """
    if output.shape != truth.shape:
        failure = f"{name} has shape {output.shape}, expected {truth.shape}"
        return Check(backend, check, math.inf, allowed, name, failure)
    wide = output.astype(np.float64)
    if not np.isfinite(wide).all() and np.isfinite(truth.astype(np.float64)).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(wide))[0])
        return Check(backend, check, math.inf, allowed, f"{name}{index}", "not a finite number")
    return Check(
        backend, check, relative_error(output, truth), allowed, _largest(wide, truth, name)
    )


def worst(checks: list[Check]) -> Check:
    """The check that is nearest to failing, or furthest beyond."""
    return max(checks, key=lambda c: math.inf if c.failure else c.error / max(c.bound, 1e-30))


def _largest(output: np.ndarray, truth: np.ndarray, name: str) -> str:
    difference = np.abs(output - truth.astype(np.float64))
    index = np.unravel_index(int(difference.argmax()), difference.shape)
    place = ",".join(str(int(i)) for i in index)
    return f"{name}[{place}] off by {float(difference[index]):.0e}"
