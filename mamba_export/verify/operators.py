"""Operators of an exported file, each alone, against the float64 reference.

The functions are taken out of the file itself, so that what is tested is what ships, and put into graphs of
one node with random inputs over the parity grid: lengths, batches, d_state, groups, both directions,
and step sizes from vanishing to saturating.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from mamba_export import contract
from mamba_export.errors import first_line
from mamba_export.models import TORCH_DTYPES
from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.selective_scan.reference import selective_scan_reference
from mamba_export.verify.bounds import (
    BATCHES,
    D_STATES,
    LENGTHS,
    Check,
    bound,
    compare,
    relative_error,
    worst,
)

RunGraph = Callable[[bytes, dict[str, np.ndarray]], list[np.ndarray]]
"""Runs a serialised model on fp32 inputs and returns its outputs: what a backend brings."""

_ELEMENT_TYPES = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
_SIGNATURES = {
    contract.SELECTIVE_SCAN: (contract.SELECTIVE_SCAN_INPUTS, contract.SELECTIVE_SCAN_OUTPUTS),
    contract.SELECTIVE_SCAN_UNGATED: (
        contract.SELECTIVE_SCAN_UNGATED_INPUTS,
        contract.SELECTIVE_SCAN_OUTPUTS,
    ),
    contract.CAUSAL_CONV1D: (contract.CAUSAL_CONV1D_INPUTS, contract.CAUSAL_CONV1D_OUTPUTS),
}
_RANKS = {"A": 2, "weight": 2, "B": 4, "C": 4, "D": 1, "delta_bias": 1, "bias": 1}
_LOW = {
    contract.SELECTIVE_SCAN: {"u", "delta", "B", "C", "z", "y"},
    contract.SELECTIVE_SCAN_UNGATED: {"u", "delta", "B", "C", "y"},
    contract.CAUSAL_CONV1D: {"x", "initial_state", "y", "last_state"},
}


@dataclass(frozen=True)
class Case:
    """One point of the grid."""

    batch: int
    length: int
    d_inner: int = 8
    d_state: int = 16
    n_groups: int = 1
    reverse: bool = False
    flag: bool = True
    """delta_softplus of a scan, silu of a convolution."""
    delta_scale: float = 1.0
    delta_shift: float = 0.0

    def __str__(self) -> str:
        text = f"({self.batch}, {self.length}, {self.d_inner}) d_state {self.d_state}"
        extras = [
            (self.n_groups != 1, f"{self.n_groups} groups"),
            (self.reverse, "reverse"),
            (not self.flag, "no activation"),
            (self.delta_shift != 0, f"delta {self.delta_shift:g} +- {self.delta_scale:g}"),
        ]
        return ", ".join([text, *(words for holds, words in extras if holds)])


def grid() -> list[Case]:
    """The parity grid: every length and batch, then one axis at a time."""
    return [
        *(Case(batch, length) for batch, length in itertools.product(BATCHES, LENGTHS)),
        *(Case(2, 65, d_state=d_state) for d_state in D_STATES),
        Case(2, 65, n_groups=2),
        Case(2, 65, reverse=True),
        Case(2, 65, n_groups=4, reverse=True, flag=False),
        Case(2, 65, delta_shift=20.0, delta_scale=10.0),  # exp(dt A) underflows to 0
        Case(2, 65, delta_shift=-20.0, delta_scale=10.0),  # dt vanishes, exp(dt A) is 1
    ]


def _inputs(op: str, case: Case, seed: int) -> dict[str, Tensor]:
    """Random inputs in float64."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sequence = (case.batch, case.length, case.d_inner)
    if op == contract.CAUSAL_CONV1D:
        return {
            "x": randn(*sequence),
            "weight": randn(case.d_inner, 4),
            "bias": randn(case.d_inner),
            "initial_state": randn(case.batch, case.d_inner, 3),
        }
    per_step = (case.batch, case.length, case.n_groups, case.d_state)
    inputs = {
        "u": randn(*sequence),
        "delta": randn(*sequence) * case.delta_scale + case.delta_shift,
        "A": -torch.exp(randn(case.d_inner, case.d_state)),
        "B": randn(*per_step),
        "C": randn(*per_step),
        "D": randn(case.d_inner),
        "z": randn(*sequence),
        "delta_bias": randn(case.d_inner),
        "initial_state": randn(case.batch, case.d_inner, case.d_state),
    }
    if not case.flag:
        inputs["delta"] = (
            inputs["delta"].abs() * 0.1
        )  # without softplus a step must not be negative
        inputs["delta_bias"] = inputs["delta_bias"].abs() * 0.1
    return {name: inputs[name] for name in _SIGNATURES[op][0]}


def _reference(op: str, case: Case, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    if op == contract.CAUSAL_CONV1D:
        return causal_conv1d_reference(**inputs, silu=case.flag, reverse=case.reverse)
    full = {"z": None, **inputs}
    return selective_scan_reference(**full, delta_softplus=case.flag, reverse=case.reverse)  # type: ignore[arg-type]


def one_node_model(
    op: str, dtype: str, case: Case, functions: Sequence[onnx.FunctionProto], opset: int
) -> bytes:
    """A serialised graph of one node of our domain, fp32 outside, ``dtype`` at the node, any shape."""
    inputs, outputs = _SIGNATURES[op]
    low, element = _LOW[op], _ELEMENT_TYPES[dtype]

    def declare(name: str) -> onnx.ValueInfoProto:
        dims = [f"{name}_{axis}" for axis in range(_RANKS.get(name, 3))]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    nodes = [
        helper.make_node("Cast", [name], [f"{name}_T"], to=element if name in low else 1)
        for name in inputs
    ]
    flag = contract.ATTR_SILU if op == contract.CAUSAL_CONV1D else contract.ATTR_DELTA_SOFTPLUS
    attributes: dict[str, Any] = {
        flag: int(case.flag),
        contract.ATTR_REVERSE: int(case.reverse),
        contract.ATTR_PLUGIN_VERSION: contract.PLUGIN_VERSION,
        contract.ATTR_PLUGIN_NAMESPACE: contract.PLUGIN_NAMESPACE,
    }
    nodes.append(
        helper.make_node(
            op,
            [f"{name}_T" for name in inputs],
            [f"{name}_T" for name in outputs],
            domain=contract.DOMAIN,
            **attributes,
        )
    )
    nodes += [helper.make_node("Cast", [f"{name}_T"], [name], to=1) for name in outputs]
    graph = helper.make_graph(
        nodes, "one_node", [declare(name) for name in inputs], [declare(name) for name in outputs]
    )
    model = helper.make_model(
        graph,
        ir_version=10,
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(contract.DOMAIN, contract.CONTRACT_VERSION),
        ],
        functions=[function for function in functions if function.name == op],
    )
    return model.SerializeToString()


def operator_checks(
    model_file: Path, dtype: str, backend: str, run_graph: RunGraph, cases: Sequence[Case]
) -> Iterator[Check]:
    """One check an operator that the file holds: the worst point of ``cases``.

    Args:
        model_file: an exported model.onnx.
        dtype: T of the nodes.
        backend: name for the report.
        run_graph: runs a one-node graph.
        cases: points of the grid.
    """
    model = onnx.load(str(model_file), load_external_data=False)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    for op in sorted(function.name for function in model.functions if function.name in _SIGNATURES):
        checks = []
        for index, case in enumerate(cases):
            serialised = one_node_model(op, dtype, case, list(model.functions), opset)
            try:
                checks.append(_check_case(op, dtype, backend, case, index, serialised, run_graph))
            except Exception as error:  # a backend may raise anything; a verifier reports it
                reason = first_line(error)
                checks.append(Check(backend, f"{op} alone", float("inf"), 0.0, str(case), reason))
        yield worst(checks)


def _check_case(
    op: str, dtype: str, backend: str, case: Case, seed: int, model: bytes, run_graph: RunGraph
) -> Check:
    low, torch_dtype = _LOW[op], TORCH_DTYPES[dtype]
    # What the node sees: rounded to T once, so that rounding the inputs is no part of the error.
    rounded = {
        name: tensor.to(torch_dtype if name in low else torch.float32)
        for name, tensor in _inputs(op, case, seed).items()
    }
    truth = _reference(op, case, {name: tensor.double() for name, tensor in rounded.items()})
    same_dtype = _reference(op, case, rounded)
    outputs = run_graph(model, {name: tensor.float().numpy() for name, tensor in rounded.items()})
    checks = []
    for name, output, exact, reference in zip(
        _SIGNATURES[op][1], outputs, truth, same_dtype, strict=True
    ):
        reference_error = relative_error(reference.double().numpy(), exact.numpy())
        is_low = dtype if name in low else "fp32"
        allowed = bound("operator", is_low, reference_error)
        place = f"{case}: {name}"
        checks.append(compare(backend, f"{op} alone", output, exact.numpy(), allowed, name=place))
    return worst(checks)
