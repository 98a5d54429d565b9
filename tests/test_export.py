"""Export: one valid file, the same in every runtime, whole or not at all."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import mamba_export
from mamba_export import contract
from mamba_export.errors import ExportError, MambaExportError
from mamba_export.export import OPSETS, export
from mamba_export.export import exporter as exporter_module
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.models import MambaBackbone, MambaConfig, MambaLM, cast, checkpoints

OLDEST_ORT = Path(__file__).parent.parent / ".ort-oldest"


@pytest.fixture(scope="module")
def exported(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model, tmp_path_factory.mktemp("export") / "out")


def feed(model: MambaLM | MambaBackbone, sequence: np.ndarray) -> dict[str, np.ndarray]:
    name = contract.INPUT_IDS if isinstance(model, MambaLM) else contract.INPUTS_EMBEDS
    past, _ = contract.state_names(model.config.n_layer)
    states = [tensor for layer in model.initial_state(len(sequence)) for tensor in layer]
    return {name: sequence} | {
        key: tensor.numpy() for key, tensor in zip(past, states, strict=True)
    }


def run(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path / contract.MODEL_FILE))
    return session.run(None, inputs)


@torch.no_grad()
def truth(model: MambaLM | MambaBackbone, sequence: np.ndarray) -> list[np.ndarray]:
    y, state = model(torch.from_numpy(sequence))
    return [y.numpy(), *(tensor.numpy() for layer in state for tensor in layer)]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000])
def test_one_file_serves_every_length_and_batch(
    exported: Path, tiny_model: MambaLM, length: int, batch: int
) -> None:
    ids = np.random.default_rng(length).integers(0, 256, (batch, length))
    outputs = run(exported, feed(tiny_model, ids))
    for output, expected in zip(outputs, truth(tiny_model, ids), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_interface_has_the_contracts_names(exported: Path, tiny_config: MambaConfig) -> None:
    graph = onnx.load(str(exported / contract.MODEL_FILE), load_external_data=False).graph
    past, present = contract.state_names(tiny_config.n_layer)
    assert [value.name for value in graph.input] == ["input_ids", *past]
    assert [value.name for value in graph.output] == ["logits", *present]
    assert past[0] == "past_key_values.0.conv_state"
    metadata = json.loads((exported / contract.METADATA_FILE).read_text())
    assert metadata["inputs"][0] == {
        "name": "input_ids", "dtype": "int64", "shape": ["batch", "length"],
    }  # fmt: skip
    assert metadata["states"][1]["shape"] == ["batch", 64, 16]


def test_graph_holds_one_node_a_layer_and_one_function_an_operator(exported: Path) -> None:
    model = onnx.load(str(exported / contract.MODEL_FILE), load_external_data=False)
    # A layer is one node, whose function calls the operators' own.
    assert Counter(node.op_type for node in model.graph.node)["MambaLayer"] == 2
    assert {f.name for f in model.functions} == {"SelectiveScan", "CausalConv1d", "MambaLayer"}
    assert len(model.graph.node) <= 2 + 10


def test_single_nodes_carry_what_tensorrt_looks_for(tiny_model: MambaLM, tmp_path: Path) -> None:
    out = export(tiny_model, tmp_path / "out", fuse_layers=False)
    model = onnx.load(str(out / contract.MODEL_FILE), load_external_data=False)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["SelectiveScan"] == operators["CausalConv1d"] == 2
    assert {f.name for f in model.functions} == {"SelectiveScan", "CausalConv1d"}
    assert len(model.graph.node) <= 20 * 2 + 5
    node = next(n for n in model.graph.node if n.op_type == "SelectiveScan")
    assert len(node.input) == len(contract.SELECTIVE_SCAN.inputs)
    assert all(node.input), "TensorRT refuses omitted inputs"
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {
        "delta_softplus": 1, "reverse": 0, "plugin_version": b"1", "plugin_namespace": b"mamba_export",
    }  # fmt: skip


def test_weights_keep_their_names_and_tied_embeddings_are_stored_once(
    exported: Path, tiny_model: MambaLM
) -> None:
    initializers = ir.load(exported / contract.MODEL_FILE).graph.initializers
    for name, parameter in tiny_model.named_parameters():
        stored = name.removesuffix("_log") if name.endswith("A_log") else name
        assert initializers[stored].const_value.size == parameter.numel()
    stored_bytes = sum(v.const_value.nbytes for v in initializers.values())
    assert stored_bytes < sum(p.numel() for p in tiny_model.parameters()) * 4 + 1000


def test_file_names_no_path_of_this_machine(exported: Path) -> None:
    content = (exported / contract.MODEL_FILE).read_bytes()
    assert str(Path(__file__).parent.parent).encode() not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_runs(tiny_model: MambaLM, tmp_path: Path, opset: int) -> None:
    out = export(tiny_model, tmp_path / "out", opset=opset)
    model = onnx.load(str(out / contract.MODEL_FILE), load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset
    ids = np.arange(10)[None]
    np.testing.assert_allclose(
        run(out, feed(tiny_model, ids))[0], truth(tiny_model, ids)[0], rtol=1e-4, atol=1e-4
    )


def test_last_logits_only(tiny_model: MambaLM, tmp_path: Path) -> None:
    out = export(tiny_model, tmp_path / "out", last_logits_only=True)
    ids = np.arange(20).reshape(2, 10)
    logits = run(out, feed(tiny_model, ids))[0]
    np.testing.assert_allclose(logits, truth(tiny_model, ids)[0][:, -1:], rtol=1e-4, atol=1e-4)
    nodes = onnx.load(out / contract.MODEL_FILE, load_external_data=False).graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.index("Slice") < kinds.index("ReduceMean"), (
        "the last norm is of the last step alone"
    )


def test_fp16_runs_on_a_cpu(tiny_model: MambaLM, tmp_path: Path) -> None:
    out = export(tiny_model, tmp_path / "out", dtype="fp16")
    assert next(tiny_model.parameters()).dtype == torch.float32, "the caller's model is left alone"
    ids = np.random.default_rng(0).integers(0, 256, (2, 65))
    half = cast(checkpointless_copy(tiny_model), torch.float16)
    exact = truth(tiny_model, ids)[0]
    reference = truth(half, ids)[0]
    found = run(out, feed(half, ids))[0]
    assert found.dtype == np.float16

    def error(a: np.ndarray) -> float:
        return float(np.linalg.norm(a.astype(np.float64) - exact) / np.linalg.norm(exact))

    assert error(found) <= 2 * error(reference) + 2.0**-10


def checkpointless_copy(model: MambaLM) -> MambaLM:
    duplicate = MambaLM(model.config).eval()
    duplicate.load_state_dict(model.state_dict())
    return duplicate


def test_bf16_is_valid_and_typed(tiny_model: MambaLM, tmp_path: Path) -> None:
    out = export(tiny_model, tmp_path / "out", dtype="bf16")
    graph = onnx.load(str(out / contract.MODEL_FILE), load_external_data=False).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert types["logits"] == types["past_key_values.0.conv_state"] == onnx.TensorProto.BFLOAT16
    assert types["present.1.recurrent_state"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("bcdt", [None, 1e-6], ids=["mamba", "falcon norms"])
def test_backbone_without_tokens(tmp_path: Path, bcdt: float | None) -> None:
    config = MambaConfig(
        d_model=16, n_layer=2, d_state=8, bias=True, conv_bias=False, bcdt_norm_epsilon=bcdt
    )
    backbone = MambaBackbone(config).eval()
    out = export(backbone, tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((2, 33, 16), dtype=np.float32)
    for output, expected in zip(run(out, feed(backbone, x)), truth(backbone, x), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
    assert not (out / contract.GENAI_CONFIG_FILE).exists()


def test_onnx_reference_evaluator_agrees(exported: Path, tiny_model: MambaLM) -> None:
    ids = np.arange(12).reshape(2, 6)
    evaluator = ReferenceEvaluator(str(exported / contract.MODEL_FILE))
    outputs = evaluator.run(None, feed(tiny_model, ids))
    np.testing.assert_allclose(outputs[0], truth(tiny_model, ids)[0], rtol=1e-4, atol=1e-4)


def test_oldest_onnxruntime_agrees(exported: Path, tiny_model: MambaLM, tmp_path: Path) -> None:
    if not (OLDEST_ORT / "onnxruntime").is_dir():
        pytest.skip("ONNX Runtime 1.20 is not in .ort-oldest: `make test` puts it there")
    ids = np.random.default_rng(0).integers(0, 256, (2, 65))
    np.savez(tmp_path / "feed.npz", **feed(tiny_model, ids))
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, onnxruntime as ort\n"
        "session = ort.InferenceSession(sys.argv[2])\n"
        "np.save(sys.argv[4], session.run(None, dict(np.load(sys.argv[3])))[0])\n"
        "print(ort.__version__)\n"
    )
    result = subprocess.run(
        [
            sys.executable, "-c", script, str(OLDEST_ORT), str(exported / contract.MODEL_FILE),
            str(tmp_path / "feed.npz"), str(tmp_path / "logits.npy"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1.20.")
    logits = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(logits, truth(tiny_model, ids)[0], rtol=1e-4, atol=1e-4)


def test_from_a_checkpoint_folder(tiny_model: MambaLM, tmp_path: Path) -> None:
    checkpoints.save(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    stages: list[str] = []
    out = mamba_export.export(tmp_path / "model", tmp_path / "out", progress=stages.append)
    assert sorted(file.name for file in out.iterdir()) == [
        "genai_config.json", "mamba_export.json", "model.onnx", "model.onnx.data", "tokenizer.json",
    ]  # fmt: skip
    source = json.loads((out / contract.METADATA_FILE).read_text())["source"]
    assert source["path"] == str(tmp_path / "model")
    assert stages[-1] == "checking"


def test_tokenizer_from_elsewhere(tiny_model: MambaLM, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MambaExportError, match=r"holds no tokenizer.json"):
        export(tiny_model, tmp_path / "out", tokenizer=tmp_path / "empty")
    write_byte_tokenizer(tmp_path / "empty")
    out = export(tiny_model, tmp_path / "out", tokenizer=tmp_path / "empty")
    assert (out / "tokenizer.json").is_file()


def test_no_warning_reaches_the_user(
    tiny_model: MambaLM,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture,
) -> None:
    export(tiny_model, tmp_path / "out")
    assert [str(w.message) for w in recwarn] == []
    assert capfd.readouterr() == ("", "")


def test_existing_folder_needs_force(exported: Path, tiny_model: MambaLM, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(MambaExportError, match=r"exists: .* --force"):
        export(tiny_model, out)
    with pytest.raises(MambaExportError, match="--force replaces only"):
        export(tiny_model, out, force=True)
    assert (out / "mine.txt").read_text() == "precious"
    (out / contract.METADATA_FILE).write_text("{}")  # as in a folder that we wrote
    export(tiny_model, out, force=True)
    assert (out / contract.MODEL_FILE).is_file()
    assert not (out / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"


def test_failure_leaves_the_old_folder(
    tiny_model: MambaLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    (out / contract.METADATA_FILE).write_text("{}")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporter_module, "save", full)
    with pytest.raises(MambaExportError, match="the disk is full; nothing was written"):
        export(tiny_model, out, force=True)
    assert (out / "mine.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_space_is_seen_before_the_work(
    tiny_model: MambaLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(1000, 990, 10)
    monkeypatch.setattr(exporter_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExportError, match=r"the disk has 0.00 GB free and the weights need"):
        export(tiny_model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown: use one of fp32, fp16, bf16"),
        ({"opset": 12}, "opset 12 is not supported: use one of 18 to 23"),
    ],
    ids=str,
)
def test_bad_options(tiny_model: MambaLM, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(tiny_model, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_a_file(tiny_model: MambaLM, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(MambaExportError, match="is not a folder"):
        export(tiny_model, tmp_path / "out", force=True)
    assert (tmp_path / "out").read_text() == "a file"


def test_missing_source_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(MambaExportError, match="missing"):
        export(tmp_path / "missing", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_130m_shape(tmp_path: Path) -> None:
    """The published size as it is: the figures that go with it are printed, and gate nothing."""
    model = MambaLM(MambaConfig.published("130m")).eval()
    start = time.perf_counter()
    out = export(model, tmp_path / "out", dtype="fp16")
    print(f"130M exported in {time.perf_counter() - start:.1f} s")
    graph = onnx.load(str(out / contract.MODEL_FILE), load_external_data=False).graph
    assert len(graph.node) <= 24 + 15
    stored = (out / contract.WEIGHTS_FILE).stat().st_size
    assert stored < 2.05 * sum(p.numel() for p in model.parameters()), "tied embeddings, once"
