"""Operators of an exported file, each alone, against its definition's reference in float64.

The functions are taken out of the file itself, so that what is tested is what ships, and put into graphs of
one node with random inputs over the parity grid (see ``cases``). The truth is plain PyTorch: it runs no
kernel that could be judged.
"""

from __future__ import annotations

import functools
import math
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
from mamba_export.contract import DEFAULT_OPSET
from mamba_export.errors import SessionError, first_line
from mamba_export.folder.graph import open_graph
from mamba_export.models import TORCH_DTYPES
from mamba_export.operators import find
from mamba_export.verify.bounds import (
    Check,
    allowed_of,
    compare,
    relative_error,
    worst,
)
from mamba_export.verify.cases import Case, definition_of, draw, dtype_of, grid

RunGraph = Callable[[bytes, dict[str, np.ndarray]], list[np.ndarray]]
"""Runs a serialised model on fp32 inputs and returns its outputs: what a backend brings."""

_ELEMENT_TYPES = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}


class NodeGraphs:
    """Serialised graphs of one node: cases that differ in nothing that a graph holds share one.

    Args:
        functions: of the file.
        opset: of standard ONNX.
    """

    def __init__(self, functions: Sequence[onnx.FunctionProto], opset: int) -> None:
        self._functions = functions
        self._opset = opset
        self._made: dict[tuple[object, ...], bytes] = {}

    def of(self, case: Case, dtype: str) -> bytes:
        """As ``one_node_model`` has it."""
        dtypes = [dtype_of(row, case, dtype) for row in definition_of(case.node)[1].inputs]
        key = (case.node, *dtypes, repr(_attributes(case)))
        if key not in self._made:
            self._made[key] = one_node_model(case, dtype, self._functions, self._opset)
        return self._made[key]


def one_node_model(
    case: Case, dtype: str, functions: Sequence[onnx.FunctionProto], opset: int
) -> bytes:
    """A serialised graph of one node of our domain, fp32 outside, its own dtypes at the node, any shape.

    Args:
        case: names the node, its attributes and sizes (which derived attributes need).
        dtype: T.
        functions: of the file; the node's, and those that it calls, are kept.
        opset: of standard ONNX.
    """
    definition, form = definition_of(case.node)
    outputs = definition.spec.outputs

    def declare(name: str, rank: int) -> onnx.ValueInfoProto:
        dims = [f"{name}_{axis}" for axis in range(rank)]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    nodes = [
        helper.make_node(
            "Cast", [row.name], [f"{row.name}_T"], to=_ELEMENT_TYPES[dtype_of(row, case, dtype)]
        )
        for row in form.inputs
    ]
    nodes.append(
        helper.make_node(
            case.node,
            [f"{row.name}_T" for row in form.inputs],
            [f"{row.name}_T" for row in outputs],
            domain=contract.DOMAIN,
            **_attributes(case),
            **contract.PLUGIN_ATTRIBUTES,
        )
    )
    nodes += [helper.make_node("Cast", [f"{row.name}_T"], [row.name], to=1) for row in outputs]
    graph = helper.make_graph(
        nodes,
        "one_node",
        [declare(row.name, len(row.axes)) for row in form.inputs],
        [declare(row.name, len(row.axes)) for row in outputs],
    )
    model = helper.make_model(
        graph,
        ir_version=10,
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(contract.DOMAIN, contract.CONTRACT_VERSION),
        ],
        functions=_needed(case.node, functions),
    )
    return model.SerializeToString()


def _attributes(case: Case) -> dict[str, Any]:
    spec, values = definition_of(case.node)[0].spec, dict(case.attributes)
    sizes = spec.with_products(dict(case.sizes))
    attributes: dict[str, Any] = {}
    for one in spec.node_attributes:
        if one.derived:
            attributes[one.name] = [axis.resolve(sizes) for axis in one.derived]
        else:
            attributes[one.name] = int(values[one.name]) if one.kind == "flag" else values[one.name]
    return attributes


def _needed(node: str, functions: Sequence[onnx.FunctionProto]) -> list[onnx.FunctionProto]:
    by_name = {function.name: function for function in functions}
    names = [node]
    for name in names:  # it grows: a function may call others
        names += [called for called in _called(by_name.get(name)) if called not in names]
    return [by_name[name] for name in names if name in by_name]


def _called(function: onnx.FunctionProto | None) -> list[str]:
    """Our own nodes in a function's body."""
    nodes = [] if function is None else function.node
    return [node.op_type for node in nodes if node.domain == contract.DOMAIN]


def operator_checks(
    model_file: Path,
    dtype: str,
    backend: str,
    run_graph: RunGraph,
    *,
    layers: bool = True,
    exact_products: bool = False,
) -> Iterator[Check]:
    """One check an operator that the file holds: the worst point of its grid.

    Args:
        model_file: an exported model.onnx.
        dtype: T of the nodes.
        backend: name for the report.
        run_graph: runs a one-node graph.
        layers: False leaves out operators whose functions multiply in T: for a backend that cannot run
            whole models of this dtype.
        exact_products: the backend multiplies numbers of 16 bits in fp32 (see ``bounds.allowed_of``).

    Raises:
        SessionError: the file is no valid ONNX file.
    """
    model = open_graph(model_file, error=SessionError)
    opset = next((one.version for one in model.opset_import if not one.domain), DEFAULT_OPSET)
    functions = [one for one in model.functions if one.domain == contract.DOMAIN]
    graphs = NodeGraphs(functions, opset)
    # What calls others comes after them: the first failure is the operator that is wrong.
    for function in sorted(functions, key=lambda one: (bool(_called(one)), one.name)):
        name = function.name
        found = find(name)
        if found is not None and found[1].packed:
            continue  # judged in the model, whose bounds know how runtimes round what products take
        if found is None:
            failure = f"no operator {name} is defined in this process: import what defines it"
            yield Check(backend, f"{name} alone", math.inf, 0.0, name, failure)
        elif layers or not found[0].spec.calls_products:
            yield worst(
                [
                    check_case(
                        case,
                        dtype,
                        backend,
                        seed,
                        graphs,
                        run_graph,
                        exact_products=exact_products,
                    )
                    for seed, case in enumerate(grid(name))
                ]
            )


def check_case(
    case: Case,
    dtype: str,
    backend: str,
    seed: int,
    graphs: NodeGraphs,
    run_graph: RunGraph,
    *,
    exact_products: bool = False,
) -> Check:
    """Run one point of the grid and compare every output; an exception of the backend is a failure."""
    what = f"{case.node} alone"
    outputs = definition_of(case.node)[0].spec.outputs
    question = _question(case, dtype, seed)
    try:
        found = run_graph(graphs.of(case, dtype), question.feed)
    except Exception as error:  # a backend may raise anything; a verifier reports it
        return Check(backend, what, math.inf, 0.0, str(case), first_line(error))
    checks = []
    for row, output, exact, rounding in zip(
        outputs, found, question.truth, question.rounding, strict=True
    ):
        allowed = allowed_of(
            row, dtype_of(row, case, dtype), dtype, rounding, exact_products=exact_products
        )
        checks.append(compare(backend, what, output, exact, allowed, name=f"{case}: {row.name}"))
    return worst(checks)


@dataclass(frozen=True)
class _Question:
    """Inputs of a case as fp32 arrays, the true outputs, and each one's error in the same-dtype reference."""

    feed: dict[str, np.ndarray]
    truth: list[np.ndarray]
    rounding: list[float]


@functools.lru_cache(maxsize=1024)
def _question(case: Case, dtype: str, seed: int) -> _Question:
    """A point of the grid and its truth, computed once for all backends."""
    drawn = draw(case, seed)
    # What the node sees: rounded to T once, so that rounding the inputs is no part of the error.
    rounded = {
        row.name: drawn[row.name].to(TORCH_DTYPES[dtype_of(row, case, dtype)])
        for row in definition_of(case.node)[1].inputs
    }
    truth = _reference(case, {name: tensor.double() for name, tensor in rounded.items()})
    same_dtype = _reference(case, rounded)
    exact = [tensor.numpy() for tensor in truth]
    return _Question(
        {name: tensor.float().numpy() for name, tensor in rounded.items()},
        exact,
        [relative_error(a.double().numpy(), b) for a, b in zip(same_dtype, exact, strict=True)],
    )


@torch.no_grad()
def _reference(case: Case, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    definition = definition_of(case.node)[0]
    tensors = [inputs.get(row.name) for row in definition.spec.inputs]
    outputs = definition.reference(*tensors, *(value for _, value in case.attributes))
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
