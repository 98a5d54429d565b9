"""An operator is a folder and a row: one that is defined here works everywhere, and no other file knows it.

An exponential moving average with a state. From its row come the torch operator (schema, checks, fake
kernel, autocast), its ONNX node and function, and parity's grid; from its definition the mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from mamba_export import contract
from mamba_export.backends import registry
from mamba_export.contract.spec import (
    FP32,
    NEGATIVE,
    Attribute,
    Operator,
    Size,
    T,
    axes,
)
from mamba_export.contract.spec import Tensor as Row
from mamba_export.export import export
from mamba_export.operators import OperatorDefinition, define, definitions, withdraw
from mamba_export.verify.cases import grid
from mamba_export.verify.operators import operator_checks

EMA = Operator(
    name="MovingAverage",
    torch_name="ema",
    inputs=(
        Row("x", axes("batch, length, width"), T),
        Row("decay", axes("width"), FP32, weight=True, values=NEGATIVE),  # logarithm of the factor
        Row("initial_state", axes("batch, width"), FP32),
    ),
    outputs=(
        Row("y", axes("batch, length, width"), T),
        Row("last_state", axes("batch, width"), FP32, continues="initial_state"),
    ),
    attributes=(Attribute("gain", "float", 1.0),),
    sizes=(
        Size("batch", 2, (1, 3)),
        Size("length", 9, (1, 2, 100)),
        Size("width", 6, (1, 130)),
    ),
)


def ema_reference(
    x: Tensor, decay: Tensor, initial_state: Tensor, gain: float = 1.0
) -> tuple[Tensor, Tensor]:
    """``h_t = f h_{t-1} + (1 - f) x_t`` with ``f = exp(decay)``, and ``y_t = gain h_t``."""
    h, factor, ys = initial_state, torch.exp(decay), []
    for t in range(x.shape[1]):
        h = factor * h + (1 - factor) * x[:, t].to(h.dtype)
        ys.append(gain * h)
    return torch.stack(ys, 1).to(x.dtype), h


BODY = """
    x32 = Cast <to = 1> (x)
    steps = Transpose <perm = [1, 0, 2]> (x32)
    one = Constant <value_float = 1.0> ()
    factor = Exp (decay)
    rest = Sub (one, factor)
    last_state, states = Scan <
        num_scan_inputs = 1,
        body = step (float[b, w] h, float[b, w] x_t) => (float[b, w] h_next, float[b, w] h_t) {
            kept = Mul (factor, h)
            added = Mul (rest, x_t)
            h_next = Add (kept, added)
            h_t = Identity (h_next)
        }
    > (initial_state, steps)
    along = Transpose <perm = [1, 0, 2]> (states)
    gain = Constant <value_float: float = @gain> ()
    y32 = Mul (along, gain)
    y = CastLike (y32, x)
"""

DEFINITION = OperatorDefinition(spec=EMA, reference=ema_reference, body={"MovingAverage": BODY})


class Smoothing(nn.Module):
    """A user's module that calls the operator."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.decay = nn.Parameter(-torch.rand(width) - 0.1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = torch.ops.mamba_export.ema(self.project(x), self.decay, state, 0.5)
        return y + x, state


@pytest.fixture(scope="module", autouse=True)
def defined() -> Iterator[None]:
    define(DEFINITION)
    yield
    withdraw(DEFINITION)
    assert DEFINITION not in definitions()
    assert not hasattr(torch.ops.mamba_export, "ema"), "withdrawn with its library"


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 5, 6).to(dtype), -torch.rand(6) - 0.1, torch.randn(2, 6)


def test_it_is_a_torch_operator() -> None:
    ema = torch.ops.mamba_export.ema
    torch.testing.assert_close(ema(*inputs(), 2.0), ema_reference(*inputs(), 2.0))
    torch.testing.assert_close(ema(*inputs()), ema_reference(*inputs()))
    assert str(ema.default._schema) == (
        "mamba_export::ema(Tensor x, Tensor decay, Tensor initial_state, float gain=1.) -> (Tensor, Tensor)"
    )
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ema.default, inputs(), test_utils=tests)


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, torch.randn(2, 6), r"ema: x has 2 dimensions, expected \(batch, length, width\)"),
        (0, torch.randn(2, 0, 6), "ema: x has length 0; a sequence needs at least one step"),
        (1, torch.randn(7), r"ema: decay has shape \(7,\), expected \(6,\)"),
        (
            2,
            torch.randn(2, 6).half(),
            "ema: initial_state is torch.float16, expected torch.float32",
        ),
    ],
)
def test_it_checks_its_inputs(index: int, bad: Tensor, message: str) -> None:
    given = list(inputs())
    given[index] = bad
    with pytest.raises(ValueError, match=message):
        torch.ops.mamba_export.ema(*given)


def test_autocast_casts_by_class() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y, state = torch.ops.mamba_export.ema(*inputs())
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="there is an operator MovingAverage already"):
        define(DEFINITION)
    with pytest.raises(ValueError, match="bodies are of"):
        replace(DEFINITION, body={"Another": BODY})


@pytest.fixture(scope="module")
def exported(defined: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Smoothing, Path]:
    module = Smoothing().eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    folder = export(
        module,
        (torch.randn(2, 5, 6), torch.randn(2, 6)),
        output=tmp_path_factory.mktemp("ema") / "out",
        dynamic_shapes=({0: batch, 1: length}, {0: batch}),
    )
    return module, folder / contract.MODEL_FILE


def test_a_module_that_calls_it_exports(exported: tuple[Smoothing, Path]) -> None:
    module, path = exported
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))
    [node] = [node for node in model.graph.node if node.domain == contract.DOMAIN]
    assert node.op_type == "MovingAverage"
    assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
        "gain": 0.5, "plugin_version": b"1", "plugin_namespace": b"mamba_export",
    }  # fmt: skip
    [function] = model.functions
    assert list(function.input) == ["x", "decay", "initial_state"]
    session = ort.InferenceSession(str(path))
    names = [value.name for value in session.get_inputs()]
    for batch, length in ((1, 1), (3, 40)):
        x, state = torch.randn(batch, length, 6), torch.randn(batch, 6)
        feed = dict(zip(names, (x.numpy(), state.numpy()), strict=True))
        expected = [tensor.detach().numpy() for tensor in module(x, state)]
        for output, wanted in zip(session.run(None, feed), expected, strict=True):
            np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_it_passes_parity(exported: tuple[Smoothing, Path], dtype: str) -> None:
    backend = registry.present(("cpu",))[0][0]
    [check] = operator_checks(exported[1], dtype, backend.name, backend.run_graph)
    assert check.check == "MovingAverage alone"
    assert check.passed, check
    assert len(grid("MovingAverage")) == 11


def test_parity_sees_a_wrong_body(exported: tuple[Smoothing, Path], tmp_path: Path) -> None:
    model = onnx.load(str(exported[1]))
    node = next(node for node in model.functions[0].node if node.output[0] == "rest")
    node.op_type = "Add"
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    backend = registry.present(("cpu",))[0][0]
    [check] = operator_checks(path, "fp32", backend.name, backend.run_graph)
    assert not check.passed


def test_parity_names_an_operator_that_is_not_defined(
    exported: tuple[Smoothing, Path], tmp_path: Path
) -> None:
    model = onnx.load(str(exported[1]))
    model.functions[0].name = "Unknown"
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    backend = registry.present(("cpu",))[0][0]
    [check] = operator_checks(path, "fp32", backend.name, backend.run_graph)
    assert "no operator Unknown is defined in this process" in check.failure
