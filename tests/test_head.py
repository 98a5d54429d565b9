"""The head of a language model as a node of its own: Linear."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from mamba_export import OrtSession, contract, verify
from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.contract import LINEAR
from mamba_export.contract.weights import Weights
from mamba_export.export import export
from mamba_export.export.functions import function_proto, function_protos
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import TORCH_DTYPES, MambaLM, cast
from mamba_export.models.mamba_config import MambaConfig
from mamba_export.operators import find
from mamba_export.verify import operators
from mamba_export.verify.bounds import allowed_of
from mamba_export.verify.cases import Case, draw

needs_library = pytest.mark.skipif(CUSTOM_OPS.path() is None, reason=CUSTOM_OPS.why_absent())

SHAPES = [
    # batch, length, inputs, outputs: a row, several, more than are read at once, widths that fill no vector.
    (1, 1, 768, 1000),
    (1, 1, 65, 7),
    (3, 1, 64, 130),
    (2, 3, 33, 65),
    (1, 32, 48, 64),
    (1, 33, 48, 64),
    (2, 40, 65, 131),
    (1, 1, 1, 1),
]


def nodes(path: Path) -> Counter[str]:
    graph = onnx.load(str(path), load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def session(model: str | bytes, *, for_cuda: bool = False, optimized: Path | None = None):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    custom_ops.register(options, True, for_cuda=for_cuda)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def language_model(dtype: str, *, tied: bool = True, vocab_size: int = 96) -> MambaLM:
    torch.manual_seed(0)
    config = MambaConfig(d_model=64, n_layer=1, vocab_size=vocab_size, tie_embeddings=tied)
    model = MambaLM(config).eval()
    cast(model, TORCH_DTYPES[dtype])
    return model


@needs_library
@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape: tuple[int, ...], dtype: str) -> None:
    names = ("batch", "length", "in_features", "out_features")
    case = Case.of(LINEAR.name, **dict(zip(names, shape, strict=True)))
    model = operators.one_node_model(case, dtype, function_protos(20), 20)
    kind = TORCH_DTYPES[dtype]
    x, weight = (draw(case, 3)[name].to(kind) for name in ("x", "weight"))
    feed = {"x": x.float().numpy(), "weight": weight.float().numpy()}
    [found] = session(model).run(None, feed)
    exact = x.double() @ weight.double().T
    rounding = float((exact.to(kind).double() - exact).norm() / exact.norm())
    allowed = allowed_of(LINEAR.outputs[0], dtype, dtype, rounding, exact_products=True)
    assert np.linalg.norm(found - exact.numpy()) <= allowed * float(exact.norm())


@needs_library
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_matrices_of_16_bits_stay_so(tmp_path: Path, dtype: str, tied: bool) -> None:
    """A session holds the head once, as the file has it: no wider copy, and none that is turned."""
    out = export(language_model(dtype, tied=tied), tmp_path / "out", dtype=dtype)
    assert nodes(out / contract.MODEL_FILE)[LINEAR.name] == 1
    optimized = tmp_path / "optimized.onnx"
    session(str(out / contract.MODEL_FILE), optimized=optimized)
    held = onnx.load(str(optimized), load_external_data=False).graph.initializer
    heads = [one.data_type for one in held if sorted(one.dims) == [64, 96]]
    kind = onnx.TensorProto.FLOAT16 if dtype == "fp16" else onnx.TensorProto.BFLOAT16
    assert heads == [kind] * (1 if tied else 2)


@needs_library
def test_sessions_on_cuda_inline_it() -> None:
    """It has a kernel for CPUs alone, to which a step on a GPU must not go."""
    case = Case.of(LINEAR.name, length=3)
    model = operators.one_node_model(case, "fp32", function_protos(20), 20)
    feed = {name: tensor.float().numpy() for name, tensor in draw(case, 0).items()}
    [found] = session(model, for_cuda=True).run(None, feed)
    np.testing.assert_allclose(found, feed["x"] @ feed["weight"].T, rtol=1e-4, atol=1e-5)
    stripped = onnx.load_from_string(model)
    del stripped.functions[:]
    assert session(stripped.SerializeToString()).run(None, feed)
    with pytest.raises(Exception, match=LINEAR.name):
        session(stripped.SerializeToString(), for_cuda=True)


@pytest.mark.parametrize("packs_head", [True, False])
def test_codes(tmp_path: Path, packs_head: bool) -> None:
    """The function of a head over codes is what runtimes join to one product."""
    weights = Weights("int4", head=packs_head)
    out = export(language_model("fp16"), tmp_path / "out", dtype="fp16", weights=weights)
    found = nodes(out / contract.MODEL_FILE)
    assert found[LINEAR.name] == (not packs_head)
    assert found[f"{LINEAR.name}Packed"] == packs_head
    assert {"MatMul", "DequantizeLinear", "Transpose"}.isdisjoint(found)
    [form, *_] = LINEAR.packed_forms()
    body = function_proto(find(form.name)[0], form, 21).node
    assert [node.op_type for node in body] == ["DequantizeLinear", "MatMul"]


@needs_library
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "weights", [Weights("int4"), Weights("int8"), Weights("int4", symmetric=False)], ids=str
)
def test_codes_of_a_vocabulary_that_8_does_not_divide(
    tmp_path: Path, weights: Weights, tied: bool, native: bool
) -> None:
    """Stored with columns of zeros, which a Slice takes off: bit for bit the logits of a larger vocabulary."""
    odd, even = (language_model("fp16", tied=tied, vocab_size=size) for size in (91, 96))
    rows = {name: tensor[:91] for name, tensor in even.state_dict().items() if len(tensor) == 96}
    odd.load_state_dict({**even.state_dict(), **rows})
    ids = np.arange(1, 40).reshape(1, -1)
    logits = []
    for model in (odd, even):
        out = export(model, tmp_path / f"{model.config.vocab_size}", dtype="fp16", weights=weights)
        opened = OrtSession(out, providers=["CPUExecutionProvider"], native=native)
        logits.append(opened.run(ids)[0])
    np.testing.assert_array_equal(logits[0], logits[1][..., :91])
    assert logits[0].shape == (1, 39, 91)
    graph = onnx.load(str(tmp_path / "91" / contract.MODEL_FILE), load_external_data=False).graph
    name = "embeddings.weight" if tied else "lm_head.weight"
    [codes] = [one for one in graph.initializer if one.name == f"{name}.codes"]
    assert list(codes.dims) == [64, 96]
    report = verify(
        tmp_path / "91", model=odd, quick=True, backends=["native" if native else "cpu"]
    )
    assert [check for check in report.checks if not check.passed] == []
