"""Every row of the contract that has a compiled CPU kernel, in PyTorch, over its parity grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FP32_BOUND, ROUNDING_FLOOR, error
from torch import Tensor

from mamba_export import contract
from mamba_export.operators import native
from mamba_export.operators.dispatch import BACKEND_VARIABLE
from mamba_export.operators.dtypes import TORCH_DTYPES
from mamba_export.verify.cases import Case, definition_of, draw, dtype_of, grid

# PyTorch calls no layer: it stands for one while a model is exported.
ROWS = [op for op in contract.OPERATORS if "cpu" in op.kernels and not op.calls_products]

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_absent())


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "native")


def arguments(case: Case, dtype: str, seed: int = 0) -> list[Any]:
    """A call's tensors, rounded to their dtypes, and its attributes."""
    spec, drawn = definition_of(case.node)[0].spec, draw(case, seed)
    tensors = [
        drawn[row.name].to(TORCH_DTYPES[dtype_of(row, case, dtype)]) if row.name in drawn else None
        for row in spec.inputs
    ]
    return [*tensors, *(value for _, value in case.attributes)]


def run(node: str, values: list[Any]) -> tuple[Tensor, ...]:
    name = definition_of(node)[0].spec.torch_name
    found = getattr(torch.ops.mamba_export, name)(*values)
    return found if isinstance(found, tuple) else (found,)


def reference(node: str, values: list[Any], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    cast = [v.to(dtype) if isinstance(v, Tensor) and dtype is not None else v for v in values]
    found = definition_of(node)[0].reference(*cast)
    return found if isinstance(found, tuple) else (found,)


def assert_parity(node: str, values: list[Any], what: object = "") -> None:
    """Hold a call to the project's bounds: fp32's, or twice what the dtype costs the reference, and a floor."""
    truth = reference(node, values, torch.float64)
    rounded = reference(node, values)
    for output, exact, same_dtype in zip(run(node, values), truth, rounded, strict=True):
        assert output.dtype == same_dtype.dtype
        assert output.is_contiguous()
        allowed = FP32_BOUND
        if output.dtype != torch.float32:
            allowed = 2 * error(same_dtype, exact) + ROUNDING_FLOOR[output.dtype]
        assert error(output, exact) <= allowed, what  # false of a NaN


@pytest.mark.parametrize(
    ("node", "dtype"),
    [
        (form.name, dtype)
        for op in ROWS
        for index, form in enumerate(op.forms())
        for dtype in contract.DTYPES
        if index == 0 or dtype == "fp32"  # the first form has every input
    ],
)
def test_parity_grid(node: str, dtype: str) -> None:
    for seed, case in enumerate(grid(node)):
        assert_parity(node, arguments(case, dtype, seed), case)


def test_a_tensor_of_no_kernel_s_dtype_takes_the_next_path() -> None:
    for op in ROWS:
        node = op.name
        values = [
            v.double() if isinstance(v, Tensor) else v for v in arguments(Case.of(node), "fp32")
        ]
        with pytest.raises(Exception, match="the compiled kernels take fp32, fp16 and bf16"):
            run(node, values)
