"""The operators over sequences alone, last state included, on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import torch

from bench.rows import Row
from bench.timing import median_milliseconds
from mamba_export.backends.registry import present
from mamba_export.contract.operators import SELECTIVE_SCAN
from mamba_export.export.functions import function_protos
from mamba_export.export.graph import DEFAULT_OPSET
from mamba_export.operators import native
from mamba_export.operators.dispatch import BACKEND_VARIABLE
from mamba_export.verify.cases import Case, definition_of, draw
from mamba_export.verify.operators import one_node_model

SHAPES = ((1, 1536, 512, 16, 1), (1, 1536, 2048, 16, 1), (1, 384, 3136, 1, 4), (1, 384, 784, 8, 4))
"""(batch, d_inner, length, d_state, n_groups): a layer of the 130M model, and stages of a vision model."""

DUAL = "StateSpaceDual"
DUAL_SHAPES = ((1, 24, 1), (1, 24, 512), (1, 24, 2048), (1, 24, 8192))
"""(batch, heads, length) of state space duality, head_dim 64, d_state 128: a layer of Mamba-2's 130M model."""


def _scan_cases() -> Iterator[tuple[str, Case]]:
    for batch, d_inner, length, d_state, n_groups in SHAPES:
        what = f"scan, fp32, batch {batch}, {d_inner} channels, {length} steps"
        if n_groups > 1:
            what += f", d_state {d_state}, {n_groups} groups"
        sizes = {"batch": batch, "d_inner": d_inner, "length": length}
        yield what, Case.of(SELECTIVE_SCAN.name, **sizes, d_state=d_state, n_groups=n_groups)


def _dual_cases() -> Iterator[tuple[str, Case]]:
    for batch, heads, length in DUAL_SHAPES:
        steps = f"{length} steps" if length > 1 else "one step"
        what = f"state space duality, fp32, batch {batch}, {heads} heads, {steps}"
        sizes = {"batch": batch, "heads": heads, "length": length}
        yield what, Case.of(DUAL, **sizes, head_dim=64, d_state=128)


def operator_rows() -> Iterator[Row]:
    """Time every implementation that is present at every shape."""
    for what, case in (*_scan_cases(), *_dual_cases()):
        spec = definition_of(case.node)[0].spec
        inputs = {name: tensor.float() for name, tensor in draw(case, seed=0).items()}
        tensors = [inputs.get(row.name) for row in spec.inputs]
        for name in ("cpu", "native"):
            if name == "native" and not native.available():
                yield Row(what, "PyTorch, native kernels", None, native.why_absent())
                continue
            label = "PyTorch, vectorised" if name == "cpu" else "PyTorch, native kernels"
            with mock.patch.dict(os.environ, {BACKEND_VARIABLE: name}), torch.no_grad():
                operator = getattr(torch.ops.mamba_export, spec.torch_name)
                yield Row(what, label, median_milliseconds(lambda: operator(*tensors)))  # noqa: B023
        model = one_node_model(case, "fp32", function_protos(DEFAULT_OPSET), DEFAULT_OPSET)
        feed = {name: tensor.numpy() for name, tensor in inputs.items()}
        for backend in present(("cpu", "native"))[0]:
            run = backend.open_graph(model)
            label = "function body" if backend.name.endswith("CPU") else "native kernels"
            yield Row(
                what,
                f"ONNX Runtime, {label}",
                median_milliseconds(lambda: run(feed)),  # noqa: B023
            )
