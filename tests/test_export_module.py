"""``export`` of a module of the user's own: inputs and outputs of every kind, and what cannot be taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import mamba_export
from mamba_export import State
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.errors import ExportError, SessionError
from mamba_export.nn import Mamba, MambaConfig


class Vision(nn.Module):
    """An image in, scanned as a sequence of patches: what a Vision Mamba does, small."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.BatchNorm1d(8)  # of another mind in train mode
        self.mixer = Mamba(MambaConfig(d_model=8, n_layer=1))
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.norm(self.embed(image).flatten(2)).transpose(1, 2)
        y, _ = self.mixer(patches)
        return self.head(y.mean(1))


def test_an_image_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Vision()
    model.head.eval()  # modes are put back as they were, part by part
    image = torch.randn(1, 3, 8, 12)
    batch = torch.export.Dim("batch")
    out = mamba_export.export(
        model,
        (image,),
        output=tmp_path / "out",
        dynamic_shapes={"image": {0: batch, 2: torch.export.Dim.DYNAMIC, 3: "width"}},
    )
    assert [part.training for part in (model, model.norm, model.head)] == [True, True, False]
    session = OrtSession(out, threads=1)
    (value,) = session.metadata.inputs
    assert (value.name, value.shape) == ("image", ("batch", 3, "image_axis2", "width"))
    assert session.metadata.outputs[0].shape == ("batch", 5)
    model.eval()
    for shape in ((1, 3, 8, 12), (3, 3, 16, 4), (2, 3, 20, 32)):
        image = torch.randn(shape)
        with torch.no_grad():
            expected = model(image).numpy()
        found, state = session.run(image.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert state.tensors == ()
        assert session.run(image.numpy(), state)[0].shape == expected.shape


class Many(nn.Module):
    """Inputs and outputs of several dtypes, in a dict; a state that starts with ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(
        self, ids: Tensor, total: Tensor, mask: Tensor, pixels: Tensor, scale: Tensor
    ) -> dict[str, Tensor]:
        rows = self.table(ids) * mask.unsqueeze(-1)
        total = total + rows.sum(1)
        return {
            "rows": rows + pixels.float().mean() * scale.float(),
            "total": total,
            "kept": mask.sum(1).to(torch.int32),
            "any": mask.any(1),
            "half": total.half(),
        }


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Many, OrtSession]:
    torch.manual_seed(0)
    model = Many().eval()
    args = {
        "ids": torch.zeros(2, 3, dtype=torch.int64),
        "total": torch.zeros(2, 4),
        "mask": torch.ones(2, 3, dtype=torch.bool),
        "pixels": torch.zeros(5, 6, dtype=torch.uint8),
        "scale": torch.zeros(1, dtype=torch.bfloat16),
    }
    out = mamba_export.export(
        model,
        args,
        output=tmp_path_factory.mktemp("many") / "out",
        dynamic_shapes={
            "ids": {0: "batch", 1: "length"},
            "mask": {0: "batch", 1: "length"},
            "total": ("batch", None),
            "pixels": ("height", "width"),
        },
        states=[State("total", "total", name="running total", start=1.0)],
    )
    return model, OrtSession(out, threads=1)


def given(batch: int, length: int) -> dict[str, Any]:
    random = np.random.default_rng(length)
    return {
        "ids": random.integers(0, 10, (batch, length)),
        "mask": random.integers(0, 2, (batch, length)).astype(bool),
        "pixels": random.integers(0, 255, (2, 9), np.uint8),
        "scale": np.array([0.5], np.float32),
    }


def test_several_inputs_and_outputs(many: tuple[Many, OrtSession]) -> None:
    model, session = many
    assert [value.dtype for value in session.metadata.inputs] == ["int64", "bool", "uint8", "bf16"]
    inputs, total = given(3, 7), torch.ones(3, 4)
    state = None
    for _ in range(2):
        found, state = session.run(inputs, state)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.no_grad():
            expected = model(**tensors, total=total)
        total = expected.pop("total")
        assert list(found) == ["rows", "kept", "any", "half"]
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.numpy().dtype
            np.testing.assert_allclose(found[name], tensor.numpy(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(state.numpy()[0], total.numpy(), rtol=1e-5)
    in_order, _ = session.run(tuple(inputs.values()), None)
    first, _ = session.run(inputs)
    np.testing.assert_array_equal(in_order["rows"], first["rows"])
    assert np.all(session.initial_state(2).numpy()[0] == 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": None}, "input mask is missing: expected (batch, length) of bool"),
        ({"masks": [[True]]}, "there is no input masks: the inputs are ids, mask, pixels, scale"),
        ({"mask": np.ones((3, 6), bool)}, "mask has shape (3, 6), expected (batch, length) with length 7"),
        ({"mask": np.ones((3, 7))}, "mask has dtype float64, expected bools"),
        ({"pixels": np.full((2, 2), 256)}, "pixels has values that uint8 cannot hold"),
        ({"pixels": np.ones((2, 2))}, "pixels has dtype float64, expected integers"),
        ({"ids": [1, 2]}, "ids has shape (2,), expected (batch, length)"),
        ({"scale": [1, 2]}, "scale has shape (2,), expected (1)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)  # fmt: skip
def test_wrong_inputs(many: tuple[Many, OrtSession], change: dict[str, Any], message: str) -> None:
    inputs = {k: v for k, v in {**given(3, 7), **change}.items() if v is not None}
    with pytest.raises(SessionError) as caught:
        many[1].run(inputs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(SessionError, match="takes 4 inputs: pass a mapping by name"):
        many[1].run([1])


class Decay(nn.Module):
    """Its graph holds a computed value, a folded parameter and a lifted constant."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * torch.exp(self.A_log) + 3.7
        return y - y.mean(-1, keepdim=True), y.abs()


def test_results_may_have_names_that_the_graph_uses_inside(tmp_path: Path) -> None:
    model, x = Decay(), torch.randn(2, 3)
    expected = [tensor.detach().numpy() for tensor in model(x)]
    plain = onnx.load(mamba_export.export(model, (x,), output=tmp_path / "plain") / "model.onnx")
    constants = {tensor.name for tensor in plain.graph.initializer}
    results = {value.name for value in plain.graph.output}
    computed = {name for node in plain.graph.node for name in node.output} - results
    assert "A" in constants
    assert "mean" in computed
    (constant, *_) = sorted(constants - {"A"})
    for names in (["A", "mean"], ["mean", "mean_inside"], [constant, "mul"]):
        out = mamba_export.export(
            model, (x,), output=tmp_path / "out", output_names=names, force=True
        )
        graph = onnx.load(out / "model.onnx").graph
        assert [value.name for value in graph.output] == names
        found, _ = OrtSession(out, threads=1).run(x.numpy())
        for name, truth in zip(names, expected, strict=True):
            np.testing.assert_allclose(found[name], truth, rtol=1e-5, atol=1e-6)


# What cannot be taken


class Of(nn.Module):
    """A module of one line."""

    def __init__(self, function: Any, **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Any:
        return self.function(x) if h is None else self.function(x, h)


def branches(x: Tensor) -> Tensor:
    return x + 1 if x.sum() > 0 else x


X = torch.randn(2, 3)
H = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("module", "args", "options", "message"),
    [
        (Of(branches), (X,), {},
         r"control flow depends on the values of a tensor \(test_export_module.py, line \d+: return x \+ 1 if"),
        (Of(lambda x: x), (3,), {}, r"argument x is not a tensor \(int\)"),
        (Of(lambda x: x), (X, X, X), {}, r"args do not fit Of.forward\(x: .*too many positional"),
        (Of(lambda x: (x, 3)), (X,), {}, r"result 1 of forward is not a tensor \(int\)"),
        (Of(lambda x: torch.linalg.eigvals(x @ x.T).real), (X,), {},
         r"ONNX has no translation of the operator aten.*linalg_eig"),
        (Of(lambda x: x.reshape(2, 3)), (X,), {"dynamic_shapes": {"x": {0: "batch"}}},
         r"fixes .*batch\b.*to 2"),
        (Of(lambda x: x), (X,), {"dynamic_shapes": {"y": {0: "b"}}}, "dynamic_shapes names y"),
        (Of(lambda x: x), (X,), {"dynamic_shapes": {"x": {2: "b"}}}, r"axis 2 of x, whose shape is \(2, 3\)"),
        (Of(lambda x: x), (X,), {"dynamic_shapes": {"x": {0: "a b"}}}, "'a b' is not a valid name for an axis"),
        (Of(lambda x: x), (X,), {"dynamic_shapes": {"x": {0: 2.5}}}, "axis 0 of x is 2.5"),
        (Of(lambda x, h: (x, h)), (X, H[:, :1]), {"dynamic_shapes": ({0: "b"}, {0: "b", 1: "c"}),
         "states": [State("h", 5)]}, "state h is continued by result 5: forward has 2 results"),
        (Of(lambda x, h: (x, h.half())), (X, H), {"states": [State("h", 1)]},
         "argument h is fp32 and the result present.h is fp16: they must agree"),
        (Of(lambda x, h: (x, h[:, :2])), (X, H), {"states": [State("h", 1)]},
         r"argument h has shape \[2, 3\] and the result present.h \[2, 2\]: they must agree"),
        (Of(lambda x, h: (x, h)), (X, H), {"states": [State("g", 1)]}, "states name g, and the arguments"),
        (Of(lambda x, h: (x, h)), (X, H), {"states": [State("h", 1, grows=2)]}, "grows along axis 2: its axes"),
        (Of(lambda x, h: (x, h)), (X, H), {"states": [State("h", 1, longest=2)]}, "longest is of a state that"),
        (Of(lambda x, h: (x, h)), (X, H), {"states": [State("h", 1, longest=0)]}, "longest is 0, expected"),
        (Of(lambda x, h: (h,)), (X, H), {"states": [State("h", 0)]}, "at least one output"),
        (Of(lambda x: x, a=X.half(), b=X.bfloat16()), (X,), {},
         "the module mixes 16-bit dtypes .a is fp16 and b is bf16"),
        (nn.Conv1d(2, 2, 1).bfloat16(), (X.bfloat16(),), {},
         r"Conv, .*unsupported type: tensor\(bfloat16\): choose opset 22 or newer, or export a mod"),
        (Of(lambda x: x, a=X.double()), (X,), {}, "a is of torch.float64: cast the module first"),
        (Of(lambda x: x), (X,), {"output_names": ["a", "b"]}, "output_names needs 1 different names"),
        (Of(lambda x: x), (X,), {"input_names": ["a", "b"]}, "input_names needs 1 different names, of x"),
        (Of(lambda x: x @ x), (X,), {},
         r"cannot trace the model: .*same reduction dim.*line \d+"),
        (nn.Linear(3, 3), (X,), {"input_names": ["weight"]}, "weight is the name of a parameter and of an"),
        (Of(lambda x: x), (X,), {"output_names": ["x"]}, "x is the name of an input and of a result"),
        ("model", (X,), {}, "args are for an nn.Module, and a str was given"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_said_in_one_line(
    tmp_path: Path, module: Any, args: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        mamba_export.export(module, args, output=tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_module_without_arguments_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a Of needs example arguments: export"):
        mamba_export.export(Of(lambda x: x), tmp_path / "out")
    with pytest.raises(ExportError, match="name the folder to write"):
        mamba_export.export(Of(lambda x: x), (X,))
    with pytest.raises(ExportError, match="states are of a module with args"):
        mamba_export.export("model", tmp_path / "out", states=[State("h", 1)])


def test_a_copy_in_another_dtype(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 4)
    out = mamba_export.export(module, X, output=tmp_path / "out", dtype="fp16")
    assert module.weight.dtype == torch.float32, "the caller's module is left alone"
    session = OrtSession(out, threads=1)
    assert session.metadata.dtype == session.metadata.inputs[0].dtype == "fp16"
    found, _ = session.run(X.numpy())
    np.testing.assert_allclose(found, module(X).detach().numpy(), rtol=1e-2, atol=1e-2)
