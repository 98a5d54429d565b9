"""Graphs that are valid protobuf and no model of ours: nodes, names, shapes, types, attributes, functions."""

from __future__ import annotations

from typing import Any

from attacks.attempt import Attempt
from attacks.kinds import exported
from attacks.material import EXPORTED, SINGLE, Place
from attacks.odd import HOSTILE_TEXTS, short

_SIZES = (0, 1, -1, 3, 2**31, 2**62, 2**63 - 1, -(2**63))


def mutated(place: Place) -> Attempt:
    """One to three changes of a graph."""
    import onnx

    rng = place.rng
    path = place.copy(rng.choice((EXPORTED, EXPORTED, SINGLE))) / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    what = "; ".join(_change(rng, model) for _ in range(rng.choice((1, 1, 2, 3))))
    path.write_bytes(model.SerializeToString())
    return exported.use(place, what, verify=0.05)


def _change(rng: Any, model: Any) -> str:
    graph = model.graph
    bodies = [graph, *model.functions]
    nodes = rng.choice(bodies).node if rng.random() < 0.5 else graph.node
    node = rng.choice(nodes) if nodes else None
    ways = (
        _drop,
        _rename_input,
        _rename_output,
        _operator,
        _attribute,
        _value,
        _tensor,
        _external,
        _model,
    )
    return rng.choice(ways)(rng, model, nodes, node)


def _drop(rng: Any, model: Any, nodes: Any, node: Any) -> str:
    if node is None:
        return "nothing"
    name = node.op_type
    nodes.remove(node)
    return f"a node {name} is missing"


def _rename_input(rng: Any, model: Any, nodes: Any, node: Any) -> str:
    if node is None or not node.input:
        return "nothing"
    names = [one for other in nodes for one in (*other.input, *other.output)]
    index = rng.randrange(len(node.input))
    node.input[index] = rng.choice((*names, "", "nowhere"))
    return f"input {index} of {node.op_type} is {short(node.input[index])}"


def _rename_output(rng: Any, model: Any, nodes: Any, node: Any) -> str:
    value = rng.choice((*model.graph.input, *model.graph.output))
    old, value.name = value.name, rng.choice((*HOSTILE_TEXTS[:20], "input_ids", "logits"))
    return f"{old} of the graph is {short(value.name)}"


def _operator(rng: Any, model: Any, nodes: Any, node: Any) -> str:
    if node is None:
        return "nothing"
    old = node.op_type
    if rng.random() < 0.3:
        node.domain = rng.choice(("", "mamba_export", "com.microsoft", "x\x1b[2J"))
        return f"{old} is of the domain {short(node.domain)}"
    node.op_type = rng.choice(
        ("MatMul", "Add", "SelectiveScan", "CausalConv1d", "MambaLayer", "Loop", "Nothing", "")
    )
    return f"{old} is {node.op_type}"


def _attribute(rng: Any, model: Any, nodes: Any, node: Any) -> str:
    if node is None or not node.attribute:
        return "nothing"
    attribute = rng.choice(node.attribute)
    name = f"{attribute.name} of {node.op_type}"
    way = rng.randrange(4)
    if way == 0:
        node.attribute.remove(attribute)
        return f"{name} is missing"
    if way == 1:
        attribute.name = attribute.name + "_"
        return f"{name} has another name"
    if way == 2:
        attribute.type = rng.choice((1, 2, 3, 4, 5, 6, 7))
        return f"{name} is of type {attribute.type}"
    attribute.i, attribute.f = rng.choice(_SIZES), rng.choice((float("nan"), float("inf"), -1.0))
    attribute.s = rng.choice(HOSTILE_TEXTS).encode()
    return f"{name} is {attribute.i}, {attribute.f}, {attribute.s[:20]!r}"


def _value(rng: Any, model: Any, nodes: Any, node: Any) -> str:
    value = rng.choice((*model.graph.input, *model.graph.output, *model.graph.value_info))
    kind = value.type.tensor_type
    if rng.random() < 0.4 or not kind.shape.dim:
        kind.elem_type = rng.choice((0, 1, 6, 7, 9, 10, 11, 16, 99))
        return f"{value.name} is of type {kind.elem_type}"
    dimension = rng.choice(kind.shape.dim)
    if rng.random() < 0.3:
        kind.shape.dim.remove(dimension)
        return f"{value.name} has an axis less"
    dimension.dim_value = rng.choice(_SIZES)
    return f"{value.name} has an axis of {dimension.dim_value}"


def _tensor(rng: Any, model: Any, nodes: Any, node: Any) -> str:
    tensor = rng.choice(model.graph.initializer)
    way = rng.randrange(4)
    if way == 0:
        tensor.data_type = rng.choice((0, 2, 7, 8, 10, 11, 16, 22, 99))
        return f"{tensor.name} is of type {tensor.data_type}"
    if way == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_SIZES)
        return f"{tensor.name} has shape {list(tensor.dims)}"
    if way == 2:
        model.graph.initializer.remove(tensor)
        return f"{tensor.name} is missing"
    old, tensor.name = tensor.name, rng.choice((*HOSTILE_TEXTS[:20], "logits"))
    return f"{old} is called {short(tensor.name)}"


def _external(rng: Any, model: Any, nodes: Any, node: Any) -> str:
    tensors = [one for one in model.graph.initializer if one.external_data]
    if not tensors:
        return "nothing"
    tensor = rng.choice(tensors)
    entry = rng.choice(tensor.external_data)
    entry.value = rng.choice(
        (
            "../../outside/secret.txt",
            "/etc/hostname",
            "/dev/zero",
            "-1",
            "0",
            str(2**63),
            str(10**30),
            "x",
            "",
            "model.onnx",
            "mamba_export.json",
        )
    )
    return f"{entry.key} of {tensor.name} is {entry.value}"


def _model(rng: Any, model: Any, nodes: Any, node: Any) -> str:
    way = rng.randrange(4)
    if way == 0 and model.opset_import:
        one = rng.choice(model.opset_import)
        one.version = rng.choice((0, 1, 7, 99, 2**31, -1))
        return f"opset {one.domain!r} is {one.version}"
    if way == 1:
        model.ir_version = rng.choice((0, 3, 99, 2**40, -1))
        return f"ir_version is {model.ir_version}"
    if way == 2 and model.functions:
        function = rng.choice(model.functions)
        name = function.name
        model.functions.remove(function)
        return f"the function {name} is missing"
    if model.functions:
        function = rng.choice(model.functions)
        call = function.node.add()
        call.op_type, call.domain = function.name, function.domain
        call.input.extend(function.input)
        call.output.extend([f"{name}_again" for name in function.output])
        return f"the function {function.name} calls itself"
    return "nothing"
