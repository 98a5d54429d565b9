"""The sequence operators alone on a CPU, last state included: the selective scan and its gate, and the dual."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import torch

from bench.rows import Row
from bench.timing import median_milliseconds
from mamba_export.backends.registry import present
from mamba_export.export.functions import function_protos
from mamba_export.export.graph import DEFAULT_OPSET
from mamba_export.operators import native
from mamba_export.operators.dispatch import BACKEND_VARIABLE
from mamba_export.verify.cases import Case, definition_of, draw
from mamba_export.verify.operators import one_node_model

SHAPES = ((1, 1536, 512, 16, 1), (1, 1536, 2048, 16, 1), (1, 384, 3136, 1, 4), (1, 384, 784, 8, 4))
"""(batch, d_inner, length, d_state, n_groups): a layer of the 130M model, and stages of a vision model."""
DUAL_SHAPES = ((1, 24, 512, 64, 128), (1, 24, 2048, 64, 128))
"""(batch, heads, length, head_dim, d_state): a layer of Mamba-2's 130M model."""


def _cases() -> Iterator[tuple[str, Case]]:
    for batch, d_inner, length, d_state, n_groups in SHAPES:
        what = f"scan, fp32, batch {batch}, {d_inner} channels, {length} steps"
        if n_groups > 1:
            what += f", d_state {d_state}, {n_groups} groups"
        sizes = {"batch": batch, "length": length, "d_inner": d_inner}
        yield what, Case.of("SelectiveScan", **sizes, d_state=d_state, n_groups=n_groups)
    for batch, heads, length, head_dim, d_state in DUAL_SHAPES:
        what = f"dual, fp32, batch {batch}, {heads} heads of {head_dim}, {length} steps"
        sizes = {"batch": batch, "length": length, "heads": heads, "head_dim": head_dim}
        yield what, Case.of("StateSpaceDual", **sizes, d_state=d_state)


def operator_rows() -> Iterator[Row]:
    """Time every implementation that is present at every shape."""
    for what, case in _cases():
        definition, form = definition_of(case.node)
        drawn = {name: tensor.float() for name, tensor in draw(case, 0).items()}
        inputs = [drawn.get(row.name) for row in definition.spec.inputs]
        for name in ("cpu", "native"):
            if name == "native" and not native.available():
                yield Row(what, "PyTorch, native kernels", None, native.why_absent())
                continue
            label = "PyTorch, vectorised" if name == "cpu" else "PyTorch, native kernels"
            with mock.patch.dict(os.environ, {BACKEND_VARIABLE: name}), torch.no_grad():
                operator = getattr(torch.ops.mamba_export, definition.spec.torch_name)
                yield Row(what, label, median_milliseconds(lambda: operator(*inputs)))  # noqa: B023
        model = one_node_model(case, "fp32", function_protos(DEFAULT_OPSET), DEFAULT_OPSET)
        feed = {row.name: drawn[row.name].numpy() for row in form.inputs}
        for backend in present(("cpu", "native"))[0]:
            run = backend.open_graph(model)
            label = "function body" if backend.name.endswith("CPU") else "native kernels"
            yield Row(
                what,
                f"ONNX Runtime, {label}",
                median_milliseconds(lambda: run(feed)),  # noqa: B023
            )
