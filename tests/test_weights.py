"""Weights of 4 and 8 bits: codes, the graph that holds them, what runtimes make of it and what it costs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

import mamba_export
from mamba_export import MambaExportError, Weights, contract
from mamba_export.contract.weights import BLOCKS, WEIGHT_KINDS
from mamba_export.export import build
from mamba_export.folder.metadata import read_metadata
from mamba_export.models import Mamba2Config, MambaConfig, MambaLM, checkpoints
from mamba_export.packing import pack, rounding, unpack
from mamba_export.packing.gptq import pack_calibrated
from mamba_export.verify.weights import weight_checks

ROOT = Path(__file__).parents[1]
MODELS = {"Mamba-1": ROOT / "models" / "kjv-bytes", "Mamba-2": ROOT / "models" / "kjv-bytes-mamba2"}
OLDEST_ORT = ROOT / ".ort-oldest"
PAGE = (ROOT / "docs" / "weights.md").read_text("utf-8")
FORMS = [Weights(kind) for kind in WEIGHT_KINDS] + [
    Weights("int4", 64, symmetric=False),
    Weights("int8", 128, symmetric=False),
]


def wide_model(**options: int) -> MambaLM:
    """The narrowest model whose products can be packed; logits spread enough that an argmax means something."""
    model = MambaLM(MambaConfig(d_model=64, n_layer=2, vocab_size=256, **options)).eval()
    with torch.no_grad():
        model.embeddings.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped Mamba-1 in int4 and Mamba-2 in int8."""
    base = tmp_path_factory.mktemp("weights")
    return {
        kind: mamba_export.export(MODELS[model], base / kind, weights=kind)
        for model, kind in (("Mamba-1", "int4"), ("Mamba-2", "int8"))
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("weights", FORMS, ids=str)
def test_each_weight_is_at_its_nearest_code(weights: Weights, dtype: type) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((256, 24)) * np.exp(generator.standard_normal((256, 24)))
    matrix[:128, 3] = 0  # a block of zeros
    matrix[:, 4] = np.abs(matrix[:, 4])  # of one sign
    packed = pack(matrix.astype(np.float32), weights, np.dtype(dtype))
    assert packed.scales.dtype == dtype
    assert (packed.scales > 0).all(), "TensorRT takes no other"
    found = unpack(packed)
    assert (found[:128, 3] == 0).all()
    scales = packed.scales.astype(np.float64).repeat(weights.block, axis=0)
    distance = np.abs(found - matrix)
    if weights.kind == "fp8":  # three bits behind the first
        assert (distance <= np.maximum(np.abs(matrix) * 2**-4, scales * 2**-10) * 1.001).all()
        return
    # Half a step; a scale that is rounded moves the ends of its block, and a zero point is a whole number.
    slack = 0.5 + 0.51 * (not weights.symmetric) + 2.0**-10 * max(map(abs, weights.limits))
    assert (distance <= scales * slack).all()
    assert (distance <= scales * 0.5001).mean() > 0.95


@pytest.mark.parametrize("weights", FORMS, ids=str)
def test_a_large_matrix_is_packed_in_parts(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = np.random.default_rng(4).standard_normal((128, 20)).astype(np.float16)
    whole = pack(matrix, weights, np.dtype(np.float16))
    for at_once in (1, 3 * 128, 20 * 128):
        monkeypatch.setattr(rounding, "_AT_ONCE", at_once)
        parts = pack(matrix, weights, np.dtype(np.float16))
        np.testing.assert_array_equal(unpack(parts), unpack(whole))
        np.testing.assert_array_equal(parts.scales, whole.scales)


@pytest.mark.parametrize("weights", FORMS, ids=str)
def test_codes_stand_for_what_onnx_says(weights: Weights) -> None:
    matrix = np.random.default_rng(1).standard_normal((256, 8)).astype(np.float32)
    packed = pack(matrix, weights, np.dtype(np.float32))
    kinds = {
        ml_dtypes.int4: TensorProto.INT4,
        ml_dtypes.uint4: TensorProto.UINT4,
        ml_dtypes.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
    }
    kind = kinds.get(packed.codes.dtype.type)
    parts = {"codes": packed.codes, "scales": packed.scales, "zero_points": packed.zero_points}
    tensors = []
    for name, array in parts.items():
        if array is None:
            continue
        if name == "scales" or kind is None:
            tensors.append(numpy_helper.from_array(array, name))
        else:
            tensors.append(helper.make_tensor(name, kind, array.shape, array.astype(np.float32)))
    names = [tensor.name for tensor in tensors]
    node = helper.make_node("DequantizeLinear", names, ["y"], axis=0, block_size=weights.block)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, matrix.shape)
    graph = helper.make_graph([node], "codes", [], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {})[0], unpack(packed))


def test_onnxruntime_joins_every_pair(exported: dict[str, Path], tmp_path: Path) -> None:
    for kind, products in (("int4", 3 * 8 + 1), ("int8", 2 * 8 + 1)):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(exported[kind] / "model.onnx", options)
        nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
        found = Counter(node.op_type for node in nodes)
        assert found["MatMulNBits"] == products, kind
        assert found["DequantizeLinear"] == 0, kind


LAYERED = {
    "MambaLayerPacked": (wide_model, Weights("int4")),
    "Mamba2LayerPackedAsymmetric": (
        lambda: MambaLM(Mamba2Config(d_model=64, head_dim=16, n_layer=2, vocab_size=256)).eval(),
        Weights("int8", 64, symmetric=False),
    ),
}


@pytest.mark.parametrize("form", LAYERED)
def test_layers_of_fp16_are_nodes_that_take_codes(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, weights = LAYERED[form]
    model = make()
    folder = mamba_export.export(model, tmp_path / "out", dtype="fp16", weights=weights)
    stored = onnx.load(folder / "model.onnx", load_external_data=False)
    nodes = Counter(node.op_type for node in stored.graph.node if node.domain)
    head = "Linear" + form[form.index("Packed") :]
    assert nodes == {form: 2, head: 1}
    called = {"MambaLayerPacked": {"CausalConv1d", "SelectiveScan"}}.get(
        form, {"CausalConv1d", "StateSpaceDual", "GatedRmsNorm"}
    )
    assert {function.name for function in stored.functions} == {form, head, *called}
    onnx.checker.check_model(folder / "model.onnx")
    # A runtime without the kernel inlines the function, and joins its pairs: stays packed in memory.
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(folder / "model.onnx", options)
    inlined = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    found = Counter(node.op_type for node in inlined)
    assert found["MatMulNBits"] == 2 * 2 + 1
    assert found["DequantizeLinear"] == found[form] == 0
    report = mamba_export.verify(folder, model=model, quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_verify_passes_and_says_what_is_lost(exported: dict[str, Path], kind: str) -> None:
    report = mamba_export.verify(exported[kind], quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.to_json()["weights"] == f"{kind} in blocks of 32"
    lost = [check for check in report.checks if "bits a byte" in check.check]
    assert {check.bound for check in lost} == {{"int4": 0.03, "int8": 0.01}[kind]}
    assert {check.backend for check in lost} >= {"onnxruntime CPU"}
    assert all("where the source has" in check.where for check in lost)


def test_verify_finds_codes_that_are_not_the_model_s(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    """Scales of one matrix, a third larger: a fault that keeps every shape and runs."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in exported["int4"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    name = "backbone.layers.3.mixer.out_proj.weight.scales"
    [tensor] = [one for one in model.graph.initializer if one.name == name]
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = bytearray((folder / "model.onnx.data").read_bytes())
    start, length = int(place["offset"]), int(place["length"])
    scales = np.frombuffer(data[start : start + length], np.float32) * np.float32(4 / 3)
    data[start : start + length] = scales.tobytes()
    (folder / "model.onnx.data").write_bytes(data)
    source = checkpoints.load(MODELS["Mamba-1"]).model
    stored = read_metadata(folder).weights
    assert weight_checks(exported["int4"] / "model.onnx", source, stored).passed
    failed = weight_checks(folder / "model.onnx", source, stored)
    assert not failed.passed
    assert "layers.3.mixer.out_proj" in failed.where


def bits_per_byte(folder: Path, text: Path) -> float:
    tokens = np.frombuffer(text.read_bytes(), np.uint8)
    logits, _ = mamba_export.OrtSession(folder).run(tokens[None].astype(np.int64))
    scores = torch.log_softmax(torch.from_numpy(logits[0, :-1]).double(), dim=-1)
    nats = nn.functional.nll_loss(scores, torch.from_numpy(tokens[1:].astype(np.int64)))
    return float(nats) / math.log(2)


def test_the_page_says_what_weights_cost(exported: dict[str, Path]) -> None:
    said = {
        name: list(map(float, numbers.split("|")))
        for name, numbers in re.findall(
            r"^\| ([^|]+) \| ([\d.]+ \| [\d.]+) \|$", PAGE.partition("## Speed")[0], re.MULTILINE
        )
    }
    assert {"fp32", "int8", "int4"} <= said.keys()
    for row, bound in (("int8", 0.01), ("int4", 0.03)):
        for plain, found in zip(said["fp32"], said[row], strict=True):
            assert found - plain < bound
    for index, (name, kind) in enumerate((("Mamba-1", "int4"), ("Mamba-2", "int8"))):
        found = bits_per_byte(exported[kind], MODELS[name] / "held_out_sample.txt")
        assert found == pytest.approx(said[kind][index], abs=0.004)  # other processors' sums


def test_layers_of_other_forms_and_both_kinds_of_head(tmp_path: Path) -> None:
    tied = wide_model(bias=True, bcdt_norm_epsilon=1e-6)  # FalconMamba's
    folder = mamba_export.export(tied, tmp_path / "tied", weights="fp8")
    names = {one.name for one in graph_of(folder).initializer}
    assert {"embeddings.weight", "embeddings.weight.codes"} <= names
    assert "backbone.layers.0.mixer.dt_proj.weight" in names, "4 inputs are no block"
    assert mamba_export.verify(folder, model=tied, quick=True, backends="cpu").passed
    untied = wide_model(tie_embeddings=False)
    for head in (True, False):
        weights = Weights("int4", head=head)
        folder = mamba_export.export(untied, tmp_path / f"{head}", weights=weights)
        names = {one.name for one in graph_of(folder).initializer}
        assert ("lm_head.weight.codes" in names, "lm_head.weight" in names) == (head, not head)
        assert read_metadata(folder).weights == weights


def graph_of(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "model.onnx", load_external_data=False).graph


def test_a_module_of_your_own(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.SiLU(), nn.Linear(64, 8))
    x = torch.randn(1, 5, 64)
    folder = mamba_export.export(
        module,
        (x,),
        output=tmp_path / "out",
        weights="int8",
        dynamic_shapes={"input": {1: "length"}},
    )
    assert [one.op_type for one in graph_of(folder).node].count("DequantizeLinear") == 2
    assert mamba_export.verify(folder, model=module, backends="cpu").passed


def test_the_oldest_onnxruntime_agrees(exported: dict[str, Path], tmp_path: Path) -> None:
    if not (OLDEST_ORT / "onnxruntime").is_dir():
        pytest.skip("ONNX Runtime 1.20 is not in .ort-oldest: `make test` puts it there")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, onnxruntime as ort\n"
        "session = ort.InferenceSession(sys.argv[2])\n"
        "feeds = {one.name: np.zeros([size if isinstance(size, int) else 1 for size in one.shape], np.float32)"
        " for one in session.get_inputs()}\n"
        "feeds['input_ids'] = np.frombuffer(b'In the beginning God', np.uint8)[None].astype(np.int64)\n"
        "np.save(sys.argv[3], session.run(['logits'], feeds)[0])\n"
        "print(ort.__version__)\n"
    )
    for folder in exported.values():
        result = subprocess.run(
            [sys.executable, "-c", script, OLDEST_ORT, folder / "model.onnx", tmp_path / "y.npy"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("1.20.")
        found = np.load(tmp_path / "y.npy")
        tokens = np.frombuffer(b"In the beginning God", np.uint8)[None].astype(np.int64)
        expected, _ = mamba_export.OrtSession(folder).run(tokens)
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 0.02, "the newer one rounds the inputs of its products"


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_engines_build_with_plugins(exported: dict[str, Path], kind: str, tmp_path: Path) -> None:
    from mamba_export.backends.tensorrt import library
    from mamba_export.backends.tensorrt.names import TENSORRT_RTX
    from mamba_export.libraries import TRT_PLUGIN

    if not library.is_installed(TENSORRT_RTX):
        pytest.skip("tensorrt-rtx is not installed")
    if TRT_PLUGIN.path() is None:
        pytest.skip("the TensorRT plugin was not built (no CUDA toolkit or headers)")
    folder = tmp_path / "out"
    folder.mkdir()
    for name in (contract.MODEL_FILE, contract.WEIGHTS_FILE, contract.METADATA_FILE):
        (folder / name).write_bytes((exported[kind] / name).read_bytes())
    built = mamba_export.build(folder, mamba_export.BuildOptions(runtime="tensorrt-rtx"))
    assert built.plugins["CausalConv1d"] == 8
    # Packed: in fp32 the matrices alone would take 13 MB.
    assert built.build["engine_bytes"] < {"int4": 9e6, "int8": 12e6}[kind]


def test_engines_keep_codes_of_layers_packed(tmp_path: Path) -> None:
    from mamba_export.backends.tensorrt import library
    from mamba_export.backends.tensorrt.names import TENSORRT_RTX
    from mamba_export.libraries import TRT_PLUGIN

    if not library.is_installed(TENSORRT_RTX):
        pytest.skip("tensorrt-rtx is not installed")
    if TRT_PLUGIN.path() is None:
        pytest.skip("the TensorRT plugin was not built (no CUDA toolkit or headers)")
    model = MambaLM(MambaConfig(d_model=512, n_layer=2, vocab_size=256)).eval()
    sizes = []
    for weights in (None, "int4"):
        folder = tmp_path / str(weights)
        mamba_export.export(model, folder, dtype="fp16", weights=weights)
        built = mamba_export.build(folder, mamba_export.BuildOptions(runtime="tensorrt-rtx"))
        assert built.plugins["SelectiveScan"] == 2
        sizes.append(built.build["engine_bytes"])
    layers = 2 * (512 * 2048 + 1024 * 512)  # weights that are codes
    assert sizes[0] - sizes[1] > 0.9 * layers * (16 - 4 - 16 / 32) / 8


MODEL = wide_model()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"weights": "int5"}, "weights 'int5' is unknown: use one of int4, int8, fp8"),
        ({"weights": 4}, "weights 4 is unknown"),
        ({"weights": Weights("int4", 48)}, "the block of weights is 48: use one of 32, 64, 128"),
        ({"weights": Weights("int4", True)}, "the block of weights is True"),
        ({"weights": Weights("int4", symmetric=2)}, "weights.symmetric is 2"),  # type: ignore[arg-type]
        ({"weights": Weights("fp8", symmetric=False)}, "fp8 has no zero points"),
        ({"weights": "int4", "dtype": "bf16"}, "ONNX Runtime has no DequantizeLinear to bf16"),
        ({"weights": "int4", "opset": 20}, "needs opset 21 or newer, and --opset is 20"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_options_are_one_line(options: dict[str, object], line: str, tmp_path: Path) -> None:
    with pytest.raises(MambaExportError) as raised:
        mamba_export.export(MODEL, tmp_path / "out", **options)  # type: ignore[call-overload]
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_do_not_divide_and_no_products(tmp_path: Path) -> None:
    model = MambaLM(MambaConfig(d_model=288, n_layer=1, vocab_size=256, expand=1))
    with pytest.raises(MambaExportError, match=r"--block 64 does not divide the 288 inputs of backbone.*: "
                       r"use --block 32$"):  # fmt: skip
        mamba_export.export(model, tmp_path / "out", weights=Weights("int8", 64))
    model = MambaLM(MambaConfig(d_model=300, n_layer=1, vocab_size=256, expand=1))
    with pytest.raises(MambaExportError, match=r"300 inputs of backbone.*: leave --weights out$"):
        mamba_export.export(model, tmp_path / "out", weights="int4")
    narrow = MambaLM(MambaConfig(d_model=12, n_layer=1, vocab_size=256))
    with pytest.raises(MambaExportError, match="no product of a matrix that could be packed"):
        mamba_export.export(narrow, tmp_path / "out", weights="int4")
    with pytest.raises(MambaExportError, match="no product of a matrix"):
        mamba_export.export(
            nn.SiLU(), (torch.zeros(2, 3),), output=tmp_path / "out", weights="int8"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--asymmetric", "--pack-embeddings"])
def test_tensorrt_does_not_take_everything(option: str, tmp_path: Path) -> None:
    asymmetric = option == "--asymmetric"
    weights = Weights("int4", symmetric=not asymmetric, embeddings=not asymmetric)
    folder = mamba_export.export(MODEL, tmp_path / "out", weights=weights)
    with pytest.raises(MambaExportError, match=f"with {option}, which TensorRT does not take: "):
        mamba_export.build(folder)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_packed_embeddings(dtype: str, tmp_path: Path) -> None:
    weights = Weights("int4", embeddings=True)
    for tied in (True, False):
        model = wide_model(tie_embeddings=tied)
        folder = mamba_export.export(model, tmp_path / f"{tied}", weights=weights, dtype=dtype)
        names = {one.name for one in graph_of(folder).initializer}
        assert "embeddings.weight" not in names
        assert {"embeddings.weight.row_codes", "embeddings.weight.row_scales"} <= names
        ids = np.arange(256)[None]
        table = model.embeddings.weight.detach().numpy()
        scales = np.abs(table.reshape(256, -1, weights.block)).max(-1) / 127
        # What the rows stand for, read back through a graph that ends behind the table.
        onnx.utils.extract_model(
            str(folder / "model.onnx"), str(tmp_path / "rows.onnx"), ["input_ids"],
            [rows_of(graph_of(folder))], check_model=False,
        )  # fmt: skip
        session = ort.InferenceSession(tmp_path / "rows.onnx")
        [rows] = session.run(None, {"input_ids": ids})
        slack = 0.51 if dtype == "fp32" else 0.7
        assert (np.abs(rows[0] - table) <= slack * scales.repeat(weights.block, axis=1)).all()
    assert mamba_export.verify(folder, model=model, quick=True, backends="cpu").passed


def rows_of(graph: onnx.GraphProto) -> str:
    """Name of the rows that a packed table is widened to: what the graph reshapes last of its codes."""
    of = {name: node for node in graph.node for name in node.input}
    name = "embeddings.weight.row_codes"
    for kind in ("Gather", "Cast", "Reshape", "Mul", "Reshape"):
        assert of[name].op_type == kind
        name = of[name].output[0]
    return name


def test_a_hybrid_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.BambaConfig(
        vocab_size=61, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=16, mamba_d_state=8,
        mamba_n_groups=2, mamba_chunk_size=16, pad_token_id=0,
    )  # fmt: skip
    model = transformers.BambaForCausalLM(config).eval()
    folder = mamba_export.export(model, tmp_path / "out", weights="int8")
    names = {one.name for one in graph_of(folder).initializer}
    for name in ("0.mamba.in_proj", "1.self_attn.q_proj", "1.feed_forward.down_proj"):
        assert f"model.layers.{name}.weight.codes" in names
    assert mamba_export.verify(folder, model=model, quick=True, backends="cpu").passed


def test_command_line(tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "mamba_export", "export", str(MODELS["Mamba-1"]), *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    out = tmp_path / "out"
    done = command(
        "-o", str(out), "--weights", "int4", "--block", "64", "--asymmetric", "--keep-head",
        "--pack-embeddings",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "int4 in blocks of 64 with zero points, embeddings int8, opset 21" in done.stderr
    stored = json.loads((out / contract.METADATA_FILE).read_text())["weights"]
    assert stored == {
        "kind": "int4", "block": 64, "symmetric": False, "head": False,
        "embeddings": True, "method": "nearest",
    }  # fmt: skip
    refused = command("-o", str(tmp_path / "other"), "--block", "64")
    assert refused.returncode == 2
    assert "--block is for --weights" in refused.stderr


def test_doctor_says_how_weights_are_stored(exported: dict[str, Path]) -> None:
    from mamba_export.cli.doctor import weights_of

    [row] = weights_of(exported["int8"])
    assert (row.what, row.state, row.detail) == ("weights", "ok", "int8 in blocks of 32")


def test_damaged_metadata_is_one_line(exported: dict[str, Path], tmp_path: Path) -> None:
    source = exported["int4"]
    content = json.loads((source / contract.METADATA_FILE).read_text())
    (tmp_path / contract.MODEL_FILE).write_bytes((source / contract.MODEL_FILE).read_bytes())
    for field, value in (
        ("kind", "int5"),
        ("block", 0),
        ("symmetric", 1),
        ("head", None),
        ("method", "x"),
    ):
        weights = {**content["weights"], field: value}
        text = json.dumps({**content, "weights": weights})
        (tmp_path / contract.METADATA_FILE).write_text(text)
        with pytest.raises(MambaExportError, match=rf"weights.{field} is "):
            read_metadata(tmp_path)
    del content["weights"]  # as an older version wrote it
    (tmp_path / contract.METADATA_FILE).write_text(json.dumps(content))
    assert read_metadata(tmp_path).weights is None


def test_parameters_that_are_not_packed_are_stored_as_before() -> None:
    assert BLOCKS[0] == 32
    plain = build(MODEL).graph.initializers
    assert not [name for name in plain if name.endswith((".codes", ".scales"))]


@pytest.mark.parametrize("weights", FORMS, ids=str)
def test_calibrated_codes_change_outputs_less(weights: Weights) -> None:
    generator = np.random.default_rng(2)
    # Inputs that tell of one another, as a model's do: some directions are much larger than others.
    mixing = np.exp(-np.arange(256) / 64)[:, None] * generator.standard_normal((256, 256))
    seen, others = (generator.standard_normal((2, 2048, 256)) @ mixing).astype(np.float32)
    matrix = generator.standard_normal((256, 48)).astype(np.float32)
    squares = torch.from_numpy(seen.T @ seen)
    codes = pack_calibrated(matrix.copy(), squares, weights, np.dtype(np.float32))
    near = pack(matrix, weights, np.dtype(np.float32))
    assert codes.codes.dtype == near.codes.dtype
    assert codes.scales.shape == near.scales.shape
    errors = [np.linalg.norm(others @ (unpack(one) - matrix)) for one in (codes, near)]
    assert errors[0] < 0.8 * errors[1]


def test_a_text_that_tells_nothing_leaves_the_nearest_codes() -> None:
    matrix = np.random.default_rng(3).standard_normal((64, 8)).astype(np.float32)
    expected = unpack(pack(matrix, Weights("int4"), np.dtype(np.float32)))
    for squares in (
        torch.eye(64),
        torch.diag(torch.arange(1.0, 65.0)),
    ):  # no input tells of another
        found = pack_calibrated(matrix.copy(), squares, Weights("int4"), np.dtype(np.float32))
        np.testing.assert_array_equal(unpack(found), expected)


def test_a_calibrated_model_is_nearer_to_its_source(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    sample = (MODELS["Mamba-1"] / "held_out_sample.txt").read_text("utf-8")
    half = len(sample) // 2
    folder = mamba_export.export(
        MODELS["Mamba-1"], tmp_path / "out", weights="int4", calibrate=sample[:half]
    )
    stored = read_metadata(folder).weights
    assert stored is not None
    assert stored.method == "gptq"
    tokens = np.frombuffer(sample[half:].encode(), np.uint8)[None].astype(np.int64)
    with torch.no_grad():
        source = (
            checkpoints.load(MODELS["Mamba-1"]).model(torch.from_numpy(tokens))[0].log_softmax(-1)
        )
    far = []
    for one in (folder, exported["int4"]):
        logits, _ = mamba_export.OrtSession(one).run(tokens)
        found = torch.from_numpy(logits).log_softmax(-1)
        far.append(
            nn.functional.kl_div(found, source, log_target=True, reduction="batchmean").item()
        )
    assert far[0] < 0.8 * far[1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"calibrate": "In the beginning"}, "--calibrate is for --weights"),
        ({"calibrate": 5, "weights": "int4"}, "calibrate is 5, expected a text"),
        (
            {"calibrate": "In the", "weights": "int4"},
            "needs a tokenizer.json, and the model has none",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_calibration_is_one_line(options: dict[str, object], line: str, tmp_path: Path) -> None:
    with pytest.raises(MambaExportError) as raised:
        mamba_export.export(MODEL, tmp_path / "out", **options)  # type: ignore[call-overload]
    assert line in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_short_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MambaExportError, match="the text has 6 tokens, and at least 64 are needed"):
        mamba_export.export(MODELS["Mamba-1"], tmp_path / "out", weights="int4", calibrate="In the")
