"""Layers as one node: what is fused, what is left alone, and that runtimes without a kernel lose nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from mamba_export import contract
from mamba_export.export import build, check, export
from mamba_export.models import (
    TORCH_DTYPES,
    LayerState,
    MambaBackbone,
    MambaConfig,
    MambaLM,
    cast,
)
from mamba_export.models.language_model import Layer, layers_as_nodes
from mamba_export.operators.mamba_layer.reference import mamba_layer_reference

ROOT = Path(__file__).parent.parent
CONFIG = MambaConfig(d_model=32, n_layer=3, vocab_size=256)


def language_model(config: MambaConfig = CONFIG, dtype: str = "fp32") -> MambaLM:
    model = MambaLM(config).eval()
    with torch.no_grad():
        model.embeddings.weight.mul_(20)
    cast(model, TORCH_DTYPES[dtype])
    return model


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(path: Path, optimized: Path) -> tuple[list[np.ndarray], Counter[str]]:
    """Outputs for random tokens and states in stock ONNX Runtime, and the operators that it kept."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options)
    generator = np.random.default_rng(0)
    feed = {"input_ids": generator.integers(0, 256, (2, 9))}
    for value in session.get_inputs()[1:]:
        kind = np.float16 if "16" in value.type else np.float32
        feed[value.name] = generator.standard_normal([2, *value.shape[1:]]).astype(kind)
    graph = onnx.load(str(optimized), load_external_data=False).graph
    return session.run(None, feed), Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize("residual_in_fp32", [True, False], ids=["R fp32", "R is T"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_stock_runtime_makes_the_same_of_both_forms(
    tmp_path: Path, dtype: str, residual_in_fp32: bool
) -> None:
    model = language_model(CONFIG.replace(residual_in_fp32=residual_in_fp32), dtype)
    results = []
    for fused in (True, False):
        path = tmp_path / f"{fused}.onnx"
        ir.save(build(model, fuse_layers=fused), path)
        results.append(run(path, tmp_path / "optimized.onnx"))
    (outputs, nodes), (expected, plain_nodes) = results
    for output, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(output, wanted)
    assert nodes == plain_nodes


@pytest.mark.parametrize("residual_in_fp32", [True, False], ids=["R fp32", "R is T"])
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_every_layer_is_one_node(tmp_path: Path, dtype: str, residual_in_fp32: bool) -> None:
    config = CONFIG.replace(residual_in_fp32=residual_in_fp32, conv_bias=dtype != "fp16")
    model = build(language_model(config, dtype))
    assert operators(model)[contract.MAMBA_LAYER.name] == 3
    assert not {contract.SELECTIVE_SCAN.name, contract.CAUSAL_CONV1D.name} & operators(model).keys()
    ir.save(model, tmp_path / "model.onnx")
    check(tmp_path / "model.onnx")
    proto = onnx.load(str(tmp_path / "model.onnx"))
    assert {function.name for function in proto.functions} == {
        contract.MAMBA_LAYER.name, contract.SELECTIVE_SCAN.name, contract.CAUSAL_CONV1D.name,
        *((contract.LINEAR.name,) if dtype != "fp32" else ()),
    }  # fmt: skip
    read = {name for node in proto.graph.node for name in node.input}
    assert {tensor.name for tensor in proto.graph.initializer} <= read, "nothing is left over"
    node = next(n for n in proto.graph.node if n.op_type == contract.MAMBA_LAYER.name)
    assert len(node.input) == len(contract.MAMBA_LAYER.inputs)
    assert len(node.output) == len(contract.MAMBA_LAYER.outputs)
    assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
        "epsilon": pytest.approx(1e-5), "split": [2, 16, 16],
        "plugin_version": b"1", "plugin_namespace": b"mamba_export",
    }  # fmt: skip


def test_inputs_are_in_the_contracts_order() -> None:
    model = build(language_model())
    layer = next(node for node in model.graph if node.op_type == contract.MAMBA_LAYER.name)
    prefix = "backbone.layers.0."
    expected = {
        "norm_weight": prefix + "norm.weight",
        "in_proj_weight": prefix + "mixer.in_proj.weight",
        "conv_weight": prefix + "mixer.conv1d.weight",
        "conv_bias": prefix + "mixer.conv1d.bias",
        "x_proj_weight": prefix + "mixer.x_proj.weight",
        "dt_proj_weight": prefix + "mixer.dt_proj.weight",
        "dt_bias": prefix + "mixer.dt_proj.bias",
        "A": prefix + "mixer.A",
        "D": prefix + "mixer.D",
        "out_proj_weight": prefix + "mixer.out_proj.weight",
        "conv_state": "past_key_values.0.conv_state",
        "recurrent_state": "past_key_values.0.recurrent_state",
    }
    names = [value.name for value in layer.inputs if value is not None]
    assert (
        dict(zip([row.name for row in contract.MAMBA_LAYER.inputs[1:]], names[1:], strict=True))
        == expected
    )
    assert [value.name for value in layer.outputs[1:]] == [
        "present.0.conv_state", "present.0.recurrent_state",
    ]  # fmt: skip
    shapes = [value.shape for value in layer.inputs if value is not None]
    assert shapes[2] == ir.Shape([32, 128]), "projections are (in, out)"


@pytest.mark.parametrize(
    "config",
    [CONFIG.replace(bias=True), CONFIG.replace(bcdt_norm_epsilon=1e-6)],
    ids=["projections with a bias", "falcon norms"],
)
def test_other_layers_are_left_as_they_are(config: MambaConfig) -> None:
    model = language_model(config)
    assert operators(build(model)) == operators(build(model, fuse_layers=False))


def test_layers_are_nodes_inside_the_context_alone() -> None:
    model = language_model()
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    with layers_as_nodes(model):
        assert all(layer.as_node for layer in layers)
    assert not any(layer.as_node for layer in layers)
    falcon = language_model(CONFIG.replace(bcdt_norm_epsilon=1e-6))
    with layers_as_nodes(falcon):
        assert not any(m.as_node for m in falcon.modules() if isinstance(m, Layer))


@pytest.mark.parametrize("residual_in_fp32", [True, False], ids=["R fp32", "R is T"])
@pytest.mark.parametrize("state", [True, False], ids=["state", "from zeros"])
@pytest.mark.parametrize("conv_bias", [True, False], ids=["bias", "no bias"])
@torch.no_grad()
def test_a_layer_as_a_node_is_the_module(
    residual_in_fp32: bool, state: bool, conv_bias: bool
) -> None:
    """The operator's decomposition, and its reference in float64, against the module's own path."""
    model = language_model(CONFIG.replace(residual_in_fp32=residual_in_fp32, conv_bias=conv_bias))
    tokens = torch.randint(0, 256, (2, 9))
    past = None
    if state:
        past = [LayerState(*(torch.randn_like(t) for t in one)) for one in model.initial_state(2)]
    expected = model(tokens, past)
    with layers_as_nodes(model):
        found = model(tokens, past)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_the_layers_reference_is_the_module_in_float64() -> None:
    layer = language_model().backbone.layers[0].double()
    hidden = torch.randn(2, 9, 32, dtype=torch.float64)
    state = LayerState(*(torch.randn_like(t) for t in layer.mixer.initial_state(2)))
    expected, expected_state = layer(hidden, state)
    mixer = layer.mixer
    found = mamba_layer_reference(
        hidden, layer.norm.weight, mixer.in_proj.weight.t(), mixer.conv1d.weight.squeeze(1),
        mixer.conv1d.bias, mixer.x_proj.weight.t(), mixer.dt_proj.weight.t(), mixer.dt_proj.bias,
        -torch.exp(mixer.A_log), mixer.D, mixer.out_proj.weight.t(), *state, layer.norm.epsilon,
    )  # fmt: skip
    torch.testing.assert_close(found, (expected, *expected_state))


def test_switched_off(tmp_path: Path) -> None:
    out = export(language_model(), tmp_path / "out", fuse_layers=False)
    graph = onnx.load(str(out / contract.MODEL_FILE), load_external_data=False)
    assert {function.name for function in graph.functions} == {
        contract.SELECTIVE_SCAN.name, contract.CAUSAL_CONV1D.name,
    }  # fmt: skip


def test_backbone_is_fused_too() -> None:
    backbone = MambaBackbone(CONFIG.replace(vocab_size=0, n_layer=2)).eval()
    assert operators(build(backbone))[contract.MAMBA_LAYER.name] == 2
