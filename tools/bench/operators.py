"""The selective scan alone, gate and last state included, on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from bench.rows import Row
from bench.timing import median_milliseconds
from mamba_export.backends.registry import present
from mamba_export.contract.operators import SELECTIVE_SCAN
from mamba_export.export.functions import function_protos
from mamba_export.export.graph import DEFAULT_OPSET
from mamba_export.operators import native
from mamba_export.operators.dispatch import BACKEND_VARIABLE
from mamba_export.verify.cases import Case
from mamba_export.verify.operators import one_node_model

SHAPES = ((1, 1536, 512), (1, 1536, 2048))
"""(batch, d_inner, length), with d_state 16: one layer of the 130M model."""
_D_STATE = 16


def _inputs(batch: int, d_inner: int, length: int) -> list[Tensor]:
    sequence, per_step = (batch, length, d_inner), (batch, length, 1, _D_STATE)
    return [
        torch.randn(sequence),
        torch.randn(sequence),
        -torch.exp(torch.randn(d_inner, _D_STATE)),
        torch.randn(per_step),
        torch.randn(per_step),
        torch.randn(d_inner),
        torch.randn(sequence),
        torch.randn(d_inner),
        torch.randn(batch, d_inner, _D_STATE),
    ]


def operator_rows() -> Iterator[Row]:
    """Time every implementation that is present at every shape."""
    for batch, d_inner, length in SHAPES:
        what = f"scan, fp32, batch {batch}, {d_inner} channels, {length} steps"
        inputs = _inputs(batch, d_inner, length)
        for name in ("cpu", "native"):
            if name == "native" and not native.available():
                yield Row(what, "PyTorch, native kernels", None, native.why_absent())
                continue
            label = "PyTorch, vectorised" if name == "cpu" else "PyTorch, native kernels"
            with mock.patch.dict(os.environ, {BACKEND_VARIABLE: name}), torch.no_grad():
                operator = torch.ops.mamba_export.selective_scan
                yield Row(what, label, median_milliseconds(lambda: operator(*inputs)))  # noqa: B023
        case = Case.of(SELECTIVE_SCAN.name, batch=batch, length=length, d_inner=d_inner)
        model = one_node_model(case, "fp32", function_protos(DEFAULT_OPSET), DEFAULT_OPSET)
        names = [row.name for row in SELECTIVE_SCAN.inputs]
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        for backend in present(("cpu", "native"))[0]:
            run = backend.open_graph(model)
            label = "function body" if backend.name.endswith("CPU") else "native kernels"
            yield Row(
                what,
                f"ONNX Runtime, {label}",
                median_milliseconds(lambda: run(feed)),  # noqa: B023
            )
