"""Exact zero-order hold for B: the scan of every backend against float64, and an exported model with it."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from cases import FP32_BOUND, SCAN, double, error, low, scan_inputs
from torch import Tensor

from mamba_export import contract, export, verify
from mamba_export.backends.tensorrt import BuildOptions, build
from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.names import TENSORRT_RTX
from mamba_export.cli.doctor import discretization_of
from mamba_export.errors import ExportError, SessionError
from mamba_export.folder.metadata import read_metadata
from mamba_export.libraries import CUSTOM_OPS, TRT_PLUGIN
from mamba_export.models import Mamba, MambaConfig, MambaLM, checkpoints
from mamba_export.operators import native, selective_scan
from mamba_export.operators.dispatch import BACKEND_VARIABLE
from mamba_export.operators.selective_scan.reference import phi1, selective_scan_reference

FLAGS = (
    False,
    False,
    True,
)  # no softplus, so that the steps are those that are drawn; forward; exact
CONFIG = MambaConfig(d_model=24, n_layer=2, vocab_size=64, exact_zoh=True, dt_min=0.5, dt_max=5.0)
BACKENDS = [
    "cpu",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(
            not native.available(), reason=native.why_absent() or "there are kernels"
        ),
    ),
]


def wide_steps(length: int, dtype: torch.dtype = torch.float32, d_state: int = 16) -> list[Tensor]:
    """Inputs whose steps are from 1e-7 to 20, one as likely as another ten times as large; an A of 0 too."""
    inputs = scan_inputs(2, length, 24, d_state, 2, dtype=torch.float64)
    low_end, high_end = math.log(1e-7), math.log(20)
    inputs[1] = torch.exp(
        torch.empty(2, length, 24, dtype=torch.float64).uniform_(low_end, high_end)
    )
    inputs[2][0, 0] = 0
    inputs[7] = torch.zeros(24)
    return low([tensor.float() for tensor in inputs], dtype)


def test_phi1_keeps_its_digits() -> None:
    points = [-20.0, -1.0, -0.1, -0.0999999, -1e-3, -1e-7, -1e-14, -1e-300, 0.0, 1e-9, 0.3]
    expected = [math.expm1(x) / x if x else 1.0 for x in points]
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    assert phi1(x).tolist() == pytest.approx(expected, rel=1e-15)
    [slope] = torch.autograd.grad(phi1(x).sum(), x)
    # The slope, where its own formula keeps its digits, and at 0.
    assert slope[1].item() == pytest.approx((-math.exp(-1) - math.expm1(-1)), rel=1e-14)
    assert slope[8].item() == 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("length", [1, 2, 65])
@pytest.mark.parametrize("d_state", [6, 16])
def test_the_scan_is_that_of_float64(
    d_state: int, length: int, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    inputs = wide_steps(length, dtype, d_state)
    truth = selective_scan_reference(*double(inputs), *FLAGS)
    y, last_state = SCAN(*inputs, *FLAGS)
    allowed = FP32_BOUND if dtype == torch.float32 else 2.0**-8
    assert error(y, truth[0]) <= allowed
    assert error(last_state, truth[1]) <= FP32_BOUND
    euler = SCAN(*inputs, False, False)[1]
    assert error(euler, truth[1]) > 0.1, "at such steps the two are not alike"


def assert_small_steps(small: float, device: str) -> None:
    """What small steps add to a state of zeros: a state of another size would hide it, from ``verify`` too."""
    inputs = [tensor.to(device) for tensor in wide_steps(3)]
    inputs[1] = torch.full_like(inputs[1], small)
    inputs[8] = torch.zeros_like(inputs[8])
    truth = selective_scan_reference(*double(inputs), *FLAGS)
    assert error(SCAN(*inputs, *FLAGS)[1], truth[1]) <= 1e-6


SMALL = pytest.mark.parametrize("small", [1e-7, 1e-4])


@pytest.mark.parametrize("backend", BACKENDS)
@SMALL
def test_small_steps_lose_no_digits(
    small: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    assert_small_steps(small, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "triton"])
@SMALL
def test_small_steps_lose_no_digits_on_a_gpu(
    small: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    assert_small_steps(small, "cuda")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parts", [(1,) * 9, (7, 2), (1, 8)], ids=str)
def test_split_equals_whole(
    parts: tuple[int, ...], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    u, delta, A, B, C, D, z, bias, state = wide_steps(sum(parts))
    whole, last = SCAN(u, delta, A, B, C, D, z, bias, state, *FLAGS)
    ys, start = [], 0
    for size in parts:
        cut = slice(start, start + size)
        start += size
        y, state = SCAN(
            u[:, cut], delta[:, cut], A, B[:, cut], C[:, cut], D, z[:, cut], bias, state, *FLAGS
        )
        ys.append(y)
    assert error(torch.cat(ys, 1), whole) <= FP32_BOUND
    assert error(state, last) <= FP32_BOUND


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("gate", [True, False], ids=["gate", "no gate"])
def test_gradcheck(gate: bool, reverse: bool) -> None:
    inputs = scan_inputs(2, 4, 4, 3, 2, gate=gate, dtype=torch.float64)
    inputs = [None if t is None else t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(lambda *t: SCAN(*t, True, reverse, True), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_gradients_are_those_of_the_reference(dtype: torch.dtype) -> None:
    inputs = wide_steps(150)
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    outputs, truth = SCAN(*leaves, *FLAGS), selective_scan_reference(*exact, *FLAGS)
    weights = [torch.randn_like(output) for output in outputs]
    found = torch.autograd.grad(outputs, leaves, weights)
    wanted = torch.autograd.grad(truth, exact, [weight.double() for weight in weights])
    for row, a, b in zip(contract.SELECTIVE_SCAN.inputs, found, wanted, strict=True):
        assert torch.isfinite(a).all()
        assert error(a, b) <= (1e-5 if dtype == torch.float32 else 1e-12), row.name


def test_a_block_trains_with_it() -> None:
    block = Mamba(CONFIG.replace(d_model=8))
    x = torch.randn(2, 10, 8)
    y, _ = block(x)
    y.pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    again = Mamba(CONFIG.replace(d_model=8, exact_zoh=False))
    again.load_state_dict(block.state_dict())
    assert error(again(x)[0], y) > 1e-3, "the weights are the same, and the models are not"


# --- Exported --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small model, whose configuration asks for exact zero-order hold."""
    torch.manual_seed(0)
    model = MambaLM(CONFIG)
    with torch.no_grad():
        model.embeddings.weight.mul_(20)
    folder = tmp_path_factory.mktemp("source")
    checkpoints.save(model, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(source, tmp_path_factory.mktemp("exact") / "out")


def nodes(folder: Path) -> Counter[str]:
    model = onnx.load(folder / contract.MODEL_FILE, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node if node.domain == contract.DOMAIN)


def test_a_file_says_what_it_holds(exported: Path) -> None:
    assert nodes(exported) == {"SelectiveScanExactZoh": 2, "CausalConv1d": 2}
    metadata = read_metadata(exported)
    assert metadata.discretization == ("zoh",)
    assert metadata.model is not None
    assert metadata.model["exact_zoh"] is True
    [row] = discretization_of(exported)  # of `doctor OUT`
    assert row.detail.startswith("B by exact zero-order hold")


def test_an_ordinary_file_is_that_of_before(tiny_model: MambaLM, tmp_path: Path) -> None:
    out = export(tiny_model, tmp_path / "out", fuse_layers=False)
    model = onnx.load(out / contract.MODEL_FILE, load_external_data=False)
    assert "zoh" not in str(model).lower(), "nodes and functions know nothing of it"
    assert read_metadata(out).discretization == ("euler",)
    path = out / contract.METADATA_FILE
    content = json.loads(path.read_text())
    del content["discretization"], content["model"]["exact_zoh"]  # as an older version wrote it
    path.write_text(json.dumps(content))
    assert read_metadata(out).discretization is None
    path.write_text(json.dumps(content | {"discretization": ["bilinear"]}))
    with pytest.raises(
        SessionError, match=r"is damaged \(discretization.*: export the model again"
    ):
        discretization_of(out)


def test_verify_passes_with_and_without_our_library(exported: Path) -> None:
    present = ["cpu", *(["native"] if CUSTOM_OPS.path() else [])]
    report = verify(exported, backends=present, quick=True)
    assert [check for check in report.checks if not check.passed] == []
    assert report.to_json()["discretization"] == ["zoh"]
    if CUSTOM_OPS.path():
        assert len({check.backend for check in report.checks} - {"file"}) >= 2


def test_weights_of_the_other_kind_are_not_compared(exported: Path, source: Path) -> None:
    other = MambaLM(CONFIG.replace(exact_zoh=False))
    with pytest.raises(ExportError, match=r"has exact_zoh False and .* True: pass the model"):
        verify(exported, model=other, backends=["cpu"], quick=True)


class Scanner(torch.nn.Module):
    """A module of one's own: it needs no configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.A = torch.nn.Parameter(-torch.rand(8, 4))

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        exact, last = selective_scan(u, delta, self.A, B, C, exact_zoh=True)
        return exact - selective_scan(u, delta, self.A, B, C)[0], last


def test_a_module_of_one_s_own_may_hold_both(tmp_path: Path) -> None:
    shapes = ((2, 5, 8), (2, 5, 8), (2, 5, 4), (2, 5, 4))
    inputs = tuple(torch.randn(shape) for shape in shapes)
    module, steps = Scanner().eval(), {1: torch.export.Dim("length")}
    out = export(module, inputs, output=tmp_path / "out", dynamic_shapes=(steps,) * 4)
    assert nodes(out) == {"SelectiveScanUngatedExactZoh": 1, "SelectiveScanUngated": 1}
    assert read_metadata(out).discretization == ("euler", "zoh")
    longer = [torch.randn(2, 33, *shape[2:]) for shape in shapes]
    session = ort.InferenceSession(out / contract.MODEL_FILE)
    names = [one.name for one in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, longer, strict=True)}
    for found, wanted in zip(session.run(None, feed), module(*longer), strict=True):
        assert error(torch.from_numpy(found), wanted) <= FP32_BOUND


def test_a_library_that_lacks_the_node_runs_its_function(exported: Path, tmp_path: Path) -> None:
    """An older library reads past no attribute: it has no kernel of such a name."""
    if CUSTOM_OPS.path() is None:
        pytest.skip(CUSTOM_OPS.why_absent())
    model = onnx.load(exported / contract.MODEL_FILE)
    for holder in (*model.functions, model.graph):
        for node in holder.node:
            if node.op_type == "SelectiveScanExactZoh":
                node.op_type = "SelectiveScanLaterForm"
    for function in model.functions:
        function.name = function.name.replace("ExactZoh", "LaterForm")
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(CUSTOM_OPS.path()))
    renamed = ort.InferenceSession(model.SerializeToString(), options)
    stock = ort.InferenceSession(str(exported / contract.MODEL_FILE))
    metadata = read_metadata(exported)
    shape = {"batch": 1, "length": 7}
    feed = {
        value.name: torch.zeros(value.resolve(shape)).numpy() for value in metadata.graph_inputs
    }
    feed[contract.INPUT_IDS] = torch.arange(7)[None].numpy()
    found, wanted = renamed.run(None, feed)[0], stock.run(None, feed)[0]
    assert error(torch.from_numpy(found), torch.from_numpy(wanted)) <= 1e-4


@pytest.mark.skipif(
    not libraries.is_installed(TENSORRT_RTX), reason="tensorrt-rtx is not installed"
)
@pytest.mark.parametrize(
    "plugin",
    [
        pytest.param(
            True,
            id="plugin",
            marks=pytest.mark.skipif(
                TRT_PLUGIN.path() is None, reason="the TensorRT plugin was not built"
            ),
        ),
        pytest.param(False, id="bodies"),
    ],
)
def test_tensorrt_builds_it(exported: Path, plugin: bool, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "out"))
    description = build(folder, BuildOptions(plugin=plugin, runtime="tensorrt-rtx"))
    expected = {"CausalConv1d": 2, "SelectiveScanExactZoh": 2} if plugin else {}
    assert description.plugins == expected
