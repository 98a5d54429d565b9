"""Whole layers as one node under ONNX Runtime's CUDA provider: parity of kernels, captured steps of Mamba-2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cuda_provider import CUDA, NEEDS_CUDA_KERNELS

from mamba_export import contract
from mamba_export.backends import registry
from mamba_export.backends.backend import Backend
from mamba_export.backends.onnxruntime.graph_stepper import GraphStepper
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.stepper import OrtStepper
from mamba_export.contract.spec import S
from mamba_export.export import export
from mamba_export.export.functions import function_protos
from mamba_export.models import Mamba2Config, MambaLM
from mamba_export.verify import operators
from mamba_export.verify.cases import Case, draw, grid

pytestmark = NEEDS_CUDA_KERNELS

OPSET = 20
LAYERS = (contract.MAMBA_LAYER.name, contract.MAMBA2_LAYER.name)
FUNCTIONS = function_protos(OPSET)
GRAPHS = operators.NodeGraphs(FUNCTIONS, OPSET)
EVERY_LAYER = pytest.mark.parametrize("op", LAYERS)


def backend() -> Backend:
    found, missing = registry.present(("cuda-native",))
    assert found, missing
    return found[0]


@pytest.mark.parametrize("dtype", contract.DTYPES)
@EVERY_LAYER
def test_parity_grid(op: str, dtype: str) -> None:
    run_graph = backend().run_graph
    for seed, case in enumerate(grid(op)):
        check = operators.check_case(case, dtype, "cuda native", seed, GRAPHS, run_graph)
        assert check.passed, check


@pytest.mark.parametrize("length", [1, 40], ids=["step", "many rows"])
@EVERY_LAYER
def test_the_kernel_runs_and_not_the_function(op: str, length: int) -> None:
    case = Case.of(op, length=length)
    model = onnx.load_model_from_string(operators.one_node_model(case, "fp32", FUNCTIONS, OPSET))
    inputs = {name: tensor.float().numpy() for name, tensor in draw(case, seed=0).items()}
    expected = backend().run_graph(model.SerializeToString(), inputs)
    for function in model.functions:  # bodies that could not be run
        del function.node[:]
        function.node.append(onnx.helper.make_node("NoSuchOperator", [], list(function.output)))
    for found, wanted in zip(
        backend().run_graph(model.SerializeToString(), inputs), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_a_layer_with_16_bit_states_is_a_kernel_too() -> None:
    for length in (1, 40):
        case = replace(Case.of(contract.MAMBA2_LAYER.name, length=length), low=(S,))
        check = operators.check_case(case, "fp16", "cuda native", 0, GRAPHS, backend().run_graph)
        assert check.passed, check


def test_errors_name_the_operator_and_the_session_lives_on() -> None:
    case = Case.of(contract.MAMBA2_LAYER.name)
    run = backend().open_graph(operators.one_node_model(case, "fp32", FUNCTIONS, OPSET))
    inputs = {name: tensor.float().numpy() for name, tensor in draw(case, seed=0).items()}
    expected = run(inputs)
    with pytest.raises(Exception, match="mamba_export Mamba2Layer: dt_bias has shape"):
        run({**inputs, "dt_bias": inputs["dt_bias"][:-1]})
    for found, wanted in zip(run(inputs), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [("fp32", "fp32"), ("fp16", "fp32"), ("fp16", "fp16"), ("bf16", "bf16")],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_captured_steps_are_plain_ones(
    tmp_path: Path, batch: int, dtype: str, state_dtype: str
) -> None:
    torch.manual_seed(0)
    config = Mamba2Config(
        d_model=64, n_layer=2, vocab_size=256, head_dim=32, d_state=64, n_groups=2
    )
    folder = export(MambaLM(config).eval(), tmp_path / "out", dtype=dtype, state_dtype=state_dtype)
    session = OrtSession(folder, providers=[CUDA])
    assert session.native
    ids = np.random.default_rng(0).integers(0, 256, (batch, 30))
    start = session.advance(ids[:, :7])
    graph, plain = session.stepper(start), OrtStepper(session._model, start)
    for position in range(7, 30):
        found, expected = graph.step(ids[:, position]), plain.step(ids[:, position])
        scale = np.abs(expected).max()
        bound = 1e-4 if dtype == "fp32" else 2e-2
        np.testing.assert_allclose(found, expected, rtol=bound, atol=bound * scale)
    assert isinstance(graph, GraphStepper)
    assert graph.is_captured, graph.capture_problem
