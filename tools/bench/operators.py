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

SHAPES = ((1, 1536, 512, 16, 1), (1, 1536, 2048, 16, 1), (1, 384, 3136, 1, 4), (1, 384, 784, 8, 4))
"""(batch, d_inner, length, d_state, n_groups): a layer of the 130M model, and stages of a vision model."""


def _inputs(batch: int, d_inner: int, length: int, d_state: int, n_groups: int) -> list[Tensor]:
    sequence, per_step = (batch, length, d_inner), (batch, length, n_groups, d_state)
    return [
        torch.randn(sequence),
        torch.randn(sequence),
        -torch.exp(torch.randn(d_inner, d_state)),
        torch.randn(per_step),
        torch.randn(per_step),
        torch.randn(d_inner),
        torch.randn(sequence),
        torch.randn(d_inner),
        torch.randn(batch, d_inner, d_state),
    ]


def operator_rows() -> Iterator[Row]:
    """Time every implementation that is present at every shape."""
    for batch, d_inner, length, d_state, n_groups in SHAPES:
        what = f"scan, fp32, batch {batch}, {d_inner} channels, {length} steps"
        if n_groups > 1:
            what += f", d_state {d_state}, {n_groups} groups"
        inputs = _inputs(batch, d_inner, length, d_state, n_groups)
        for name in ("cpu", "native"):
            if name == "native" and not native.available():
                yield Row(what, "PyTorch, native kernels", None, native.why_absent())
                continue
            label = "PyTorch, vectorised" if name == "cpu" else "PyTorch, native kernels"
            with mock.patch.dict(os.environ, {BACKEND_VARIABLE: name}), torch.no_grad():
                operator = torch.ops.mamba_export.selective_scan
                yield Row(what, label, median_milliseconds(lambda: operator(*inputs)))  # noqa: B023
        case = Case.of(
            SELECTIVE_SCAN.name,
            batch=batch,
            length=length,
            d_inner=d_inner,
            d_state=d_state,
            n_groups=n_groups,
        )
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
