"""Graph pass: each layer of a model becomes one ``MambaLayer`` node.

A runtime with a kernel for it runs a layer in a few launches; every other one inlines the node's function,
which holds the nodes that stood here. A layer that is not of exactly that form (projections with a bias,
FalconMamba's norms of dt, B and C, a hidden value that is an output) is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from mamba_export import contract

_PLUGIN_ATTRIBUTES = {
    contract.ATTR_PLUGIN_VERSION: contract.PLUGIN_VERSION,
    contract.ATTR_PLUGIN_NAMESPACE: contract.PLUGIN_NAMESPACE,
}
_EXPONENT, _AXIS = 2.0, -1


class _DifferentError(Exception):
    """This part of the graph is not a layer of the function's form."""


@dataclass
class _Layer:
    """What the walk has found: the layer's nodes, and the values of the function's inputs by name."""

    nodes: list[ir.Node] = field(default_factory=list)
    inputs: dict[str, ir.Value] = field(default_factory=dict)
    outputs: dict[str, ir.Value] = field(default_factory=dict)
    epsilon: float = 0.0
    split: tuple[int, ...] = ()

    def take(self, node: ir.Node | None, op_type: str, domain: str = "") -> ir.Node:
        """Note a node that the function's body has here."""
        if node is None or node.op_type != op_type or node.domain != domain:
            raise _DifferentError
        self.nodes.append(node)
        return node

    def producer(self, value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node:
        return self.take(None if value is None else value.producer(), op_type, domain)

    def user(self, value: ir.Value, op_type: str) -> ir.Node:
        """The only node that reads a value."""
        users = value.consumers()
        return self.take(users[0] if len(users) == 1 else None, op_type)

    def bind(self, name: str, value: ir.Value | None) -> ir.Value:
        """Note what the node's input ``name`` is; two places that read one input must agree."""
        if value is None or self.inputs.setdefault(name, value) is not value:
            raise _DifferentError
        return value


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise _DifferentError
    return value


def _constant(value: ir.Value) -> np.ndarray:
    if value.const_value is None:
        raise _DifferentError
    return value.const_value.numpy()


def _require(*conditions: bool) -> None:
    if not all(conditions):
        raise _DifferentError


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _ndim(value: ir.Value) -> int:
    return -1 if value.shape is None else len(value.shape)


def _norm(layer: _Layer, normed: ir.Value) -> ir.Value:
    """Walk back from the norm's result to the hidden value."""
    if layer.inputs["in_proj_weight"].dtype != ir.DataType.FLOAT:
        cast = layer.producer(normed, "Cast")
        _require(cast.attributes["to"].as_int() == layer.inputs["in_proj_weight"].dtype)
        normed = _input(cast, 0)
    scale = layer.producer(normed, "Mul")
    layer.bind("norm_weight", _input(scale, 1))
    divide = layer.producer(_input(scale, 0), "Div")
    root = layer.producer(_input(divide, 1), "Sqrt")
    add = layer.producer(_input(root, 0), "Add")
    mean = layer.producer(_input(add, 0), "ReduceMean")
    power = layer.producer(_input(mean, 0), "Pow")
    hidden32 = _input(divide, 0)
    _require(
        _input(power, 0) is hidden32,
        _constant(_input(power, 1)).tolist() == _EXPONENT,
        _constant(_input(mean, 1)).tolist() == [_AXIS],
        _int(mean, "keepdims", 1) == 1,
        hidden32.dtype == ir.DataType.FLOAT,
        _constant(_input(add, 1)).size == 1,
    )
    layer.epsilon = float(_constant(_input(add, 1)).reshape(()))
    return hidden32


def _mixer(layer: _Layer, scan: ir.Node) -> tuple[ir.Value, ir.Value]:
    """From the scan back to the norm's result, and on to the mixer's output: both are returned."""
    layer.take(scan, contract.SELECTIVE_SCAN, contract.DOMAIN)
    u, delta, A, B, C, D, z, dt_bias, recurrent_state = (_input(scan, i) for i in range(9))
    for name, value in (
        ("A", A), ("D", D), ("dt_bias", dt_bias), ("recurrent_state", recurrent_state),
    ):  # fmt: skip
        layer.bind(name, value)

    dt_proj = layer.producer(delta, "MatMul")
    layer.bind("dt_proj_weight", _input(dt_proj, 1))
    split = layer.producer(_input(dt_proj, 0), "Split")
    groups = [layer.producer(value, "Unsqueeze") for value in (B, C)]
    _require(
        [_input(dt_proj, 0), *(_input(node, 0) for node in groups)] == list(split.outputs),
        all(_constant(_input(node, 1)).tolist() == [2] for node in groups),
        _int(split, "axis", 0) == 2,
    )
    layer.split = tuple(int(size) for size in _constant(_input(split, 1)))
    x_proj = layer.producer(_input(split, 0), "MatMul")
    layer.bind("x_proj_weight", _input(x_proj, 1))
    conv = layer.producer(u, contract.CAUSAL_CONV1D, contract.DOMAIN)
    for index, name in enumerate(("conv_weight", "conv_bias", "conv_state"), start=1):
        layer.bind(name, _input(conv, index))
    halves = layer.producer(z, "Split")
    _require(
        _input(x_proj, 0) is u,
        [_input(conv, 0), z] == list(halves.outputs),
        _int(halves, "axis", 0) == 2,
        _int(halves, "num_outputs", 0) == 2,
        _int(scan, contract.ATTR_DELTA_SOFTPLUS, 0) == 1,
        _int(conv, contract.ATTR_SILU, 0) == 1,
        _int(scan, contract.ATTR_REVERSE, 1) == _int(conv, contract.ATTR_REVERSE, 1) == 0,
    )
    in_proj = layer.producer(_input(halves, 0), "MatMul")
    layer.bind("in_proj_weight", _input(in_proj, 1))
    out_proj = layer.user(scan.outputs[0], "MatMul")
    layer.bind("out_proj_weight", _input(out_proj, 1))
    _require(_input(out_proj, 0) is scan.outputs[0])
    layer.outputs["last_conv_state"] = conv.outputs[1]
    layer.outputs["last_recurrent_state"] = scan.outputs[1]
    return _input(in_proj, 0), out_proj.outputs[0]


def _residual(layer: _Layer, hidden32: ir.Value, mixed: ir.Value) -> None:
    """From the mixer's output to the sum with the hidden value that the norm read."""
    users = mixed.consumers()
    if len(users) == 1 and users[0].op_type == "Cast":
        cast = layer.take(users[0], "Cast")
        _require(cast.attributes["to"].as_int() == ir.DataType.FLOAT)
        mixed = cast.outputs[0]
    add = layer.user(mixed, "Add")
    hidden = _input(add, 0)
    if hidden is not hidden32:  # a residual stream of 16 bits: the norm reads it through a cast
        cast = layer.producer(hidden32, "Cast")
        _require(_input(cast, 0) is hidden)
    _require(_input(add, 1) is mixed, _ndim(hidden) == 3)
    layer.bind("hidden", hidden)
    layer.outputs["hidden_out"] = add.outputs[0]


def _check_types(layer: _Layer) -> None:
    """The node's dtypes and ranks are the contract's: T, R and fp32."""
    low = layer.inputs["in_proj_weight"].dtype
    wide = ir.DataType.FLOAT
    _require(low in (wide, ir.DataType.FLOAT16, ir.DataType.BFLOAT16))
    _require(layer.inputs["hidden"].dtype in (wide, low))
    for name, value in layer.inputs.items():
        if name != "hidden":
            is_low = name.endswith("proj_weight") or name == "conv_state"
            _require(value.dtype == (low if is_low else wide))
        if name.endswith("_weight") and name != "norm_weight":
            _require(_ndim(value) == 2)


def _check_closed(graph: ir.Graph, layer: _Layer) -> None:
    """Nothing outside reads what is computed inside, but for the outputs."""
    inside = set(layer.nodes)
    outputs = set(layer.outputs.values())
    graph_outputs = set(graph.outputs)
    for node in layer.nodes:
        for value in node.outputs:
            if value not in outputs:
                _require(value not in graph_outputs, set(value.consumers()) <= inside)
    # The hidden value is read by the norm and the sum; the states by nothing else, so order is free.
    _require(all(value.producer() not in inside for value in layer.inputs.values()))


def _find(graph: ir.Graph, scan: ir.Node) -> _Layer | None:
    layer = _Layer()
    try:
        normed, mixed = _mixer(layer, scan)
        hidden32 = _norm(layer, normed)
        _residual(layer, hidden32, mixed)
        _check_types(layer)
        _check_closed(graph, layer)
    except _DifferentError:
        return None
    return layer


def _replace(graph: ir.Graph, layer: _Layer, index: int) -> None:
    node = ir.node(
        contract.MAMBA_LAYER,
        [layer.inputs[name] for name in contract.MAMBA_LAYER_INPUTS],
        attributes={
            contract.ATTR_EPSILON: layer.epsilon,
            contract.ATTR_SPLIT: list(layer.split),
            **_PLUGIN_ATTRIBUTES,
        },
        domain=contract.DOMAIN,
        num_outputs=len(contract.MAMBA_LAYER_OUTPUTS),
        name=f"{contract.MAMBA_LAYER}_{index}",
    )
    last = layer.outputs["hidden_out"].producer()
    assert last is not None
    graph.insert_after(last, node)
    for name, new in zip(contract.MAMBA_LAYER_OUTPUTS, node.outputs, strict=True):
        old = layer.outputs[name]
        old_name = old.name
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = None, old_name
    graph.remove(layer.nodes, safe=True)


def fuse_layers(model: ir.Model) -> int:
    """Put each layer into one ``MambaLayer`` node, in place. The function is added by ``graph.add_functions``.

    Returns:
        The number of layers that were of the function's form.
    """
    graph = model.graph
    scans = [node for node in graph if node.op_type == contract.SELECTIVE_SCAN]
    count = 0
    # One after the other: a layer's hidden value is the output of the one before.
    for scan in scans:
        layer = _find(graph, scan)
        if layer is not None:
            _replace(graph, layer, count)
            count += 1
    graph.sort()
    common.RemoveUnusedNodesPass()(model)  # constants that only the fused nodes read
    return count
