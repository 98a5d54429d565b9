"""How a graph calls our operators: which, with what sizes, dtypes and attributes. Needs the onnx package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import helper

from mamba_export.contract import OPERATORS, layout
from mamba_export.contract.names import BATCH, DOMAIN, LENGTH
from mamba_export.contract.spec import Form, Operator, R, S, T
from mamba_export.folder.graph import known_tensors


@dataclass(frozen=True)
class Call:
    """A call of an operator; calls that differ in their weights alone are equal.

    Args:
        name: of its node.
        op: its row.
        form: which of the row's nodes it is.
        sizes: the free sizes' numbers, but those of batch and length, in the row's order.
        dtypes: the name of each dtype class that the row has: T, R, S.
        attributes: the values of those that are not derived, in the row's order.
    """

    name: str
    op: Operator = field(compare=False)
    form: Form = field(compare=False)
    sizes: tuple[tuple[str, int], ...]
    dtypes: tuple[tuple[str, str], ...]
    attributes: tuple[float, ...]


def calls(model: onnx.ModelProto) -> Mapping[Call, int]:
    """The calls of a graph's nodes, and how often each occurs.

    Calls from the bodies of loops and functions are not counted, nor those whose sizes or dtypes the file does
    not tell.
    """
    known = known_tensors(model)
    forms = {
        form.name: (op, form) for op in OPERATORS for form in (*op.forms(), *op.packed_forms())
    }
    found: Counter[Call] = Counter()
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in forms:
            found.update(_call(*forms[node.op_type], node, known))
    return found


def _call(
    op: Operator,
    form: Form,
    node: onnx.NodeProto,
    known: Mapping[str, tuple[str, tuple[int | str | None, ...]]],
) -> Iterator[Call]:
    """The call, where everything of it is known."""
    if len(node.input) != len(form.inputs):
        return
    given = {
        tensor.name: known.get(name) for tensor, name in zip(form.inputs, node.input, strict=True)
    }
    sizes: list[tuple[str, int]] = []
    for size, (index, axis) in layout.size_sources(op).items():
        if size in (BATCH, LENGTH):
            continue
        tensor = given[op.inputs[index].name]
        number = tensor[1][axis] if tensor and axis < len(tensor[1]) else None
        if not isinstance(number, int):
            return
        sizes.append((size, number))
    dtypes: list[tuple[str, str]] = []
    for one in (T, R, S):
        first = next((row for row in form.inputs if row.dtype == one and row.without is None), None)
        if first is not None:  # the others follow its dtype
            tensor = given[first.name]
            if tensor is None:
                return
            dtypes.append((one, tensor[0]))
    values = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    values |= form.flags
    own = [one for one in op.attributes if not one.derived]
    attributes = tuple(float(values.get(one.name, one.default) or 0) for one in own)
    yield Call(node.op_type, op, form, tuple(sizes), tuple(dtypes), attributes)
