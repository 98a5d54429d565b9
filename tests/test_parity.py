"""verify: passes on what we export, and can fail."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from mamba_export import contract, libraries, verify
from mamba_export.errors import MambaExportError
from mamba_export.export import export
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.models import MambaBackbone, MambaConfig, MambaLM, cast, checkpoints
from mamba_export.models.program import make_program
from mamba_export.operators.dispatch import BACKEND_VARIABLE
from mamba_export.verify import Check, Report
from mamba_export.verify import truth as truths
from mamba_export.verify.bounds import bound, compare, relative_error
from mamba_export.verify.table import print_report
from mamba_export.verify.truth import Question, make_truth


@pytest.fixture(scope="module")
def source(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    checkpoints.save(tiny_model, folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def exported(source: Path) -> Path:
    return export(source, source.parent / "out")


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def failed(report: Report) -> list[str]:
    return [check.check for check in report.checks if not check.passed]


def test_passes_on_an_export(exported: Path) -> None:
    seen: list[Check] = []
    report = verify(exported, on_check=seen.append)
    assert failed(report) == []
    assert report.passed
    assert report.truth == "PyTorch in float64"
    assert seen == report.checks
    names = " ".join(check.check for check in report.checks)
    for part in ("weights", "SelectiveScan alone", "CausalConv1d alone", "batch 3, length 1000",
                 "split: ", "extreme: states of 100", "next token over 1024 of text"):  # fmt: skip
        assert part in names
    assert all(check.error <= 1e-5 for check in report.checks), "far inside the bounds"


def test_no_kernel_takes_part_in_the_truth(
    tiny_model: MambaLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "native")
    monkeypatch.setenv(libraries.KERNELS.variable, "none")
    with pytest.raises(ValueError, match="are switched off"):
        tiny_model(torch.tensor([[1, 2, 3]]))
    question = Question({contract.INPUT_IDS: np.array([[1, 2, 3]])})
    for dtype in contract.DTYPES:
        truth = make_truth(tiny_model, dtype, make_program, owned=False)
        assert truth.exact.model.backbone_dtype == torch.float64
        answer = truth.answer(question)
        assert answer.exact["output"].dtype == np.float64
        assert truth.answer(question) is answer, "kept for the next backend"
    assert tiny_model.backbone_dtype == torch.float32, "the caller's model is left alone"


def test_without_memory_the_truth_is_fp32_and_says_so(
    tiny_model: MambaLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truths, "available_memory", lambda: 1000)
    truth = make_truth(tiny_model, "fp32", make_program, owned=False)
    assert truth.exact.model is tiny_model
    assert truth.words == "PyTorch in fp32 (float64 needs 0.0 GB, 0.0 are free)"


def test_fp16(source: Path, tmp_path: Path) -> None:
    report = verify(export(source, tmp_path / "out", dtype="fp16"), quick=True)
    assert failed(report) == []


def test_bf16_says_what_the_cpu_cannot_run(source: Path, tmp_path: Path) -> None:
    report = verify(export(source, tmp_path / "out", dtype="bf16"), quick=True, backends=["cpu"])
    assert report.passed
    assert "no bf16 MatMul" in report.not_run["onnxruntime CPU, whole model"]
    assert {check.check for check in report.checks} == {
        "weights", "SelectiveScan alone", "CausalConv1d alone",
    }  # fmt: skip


def test_bf16_runs_whole_where_our_kernels_run_every_product(source: Path, tmp_path: Path) -> None:
    report = verify(export(source, tmp_path / "out", dtype="bf16"), quick=True, backends=["native"])
    assert failed(report) == []
    assert not report.not_run
    names = " ".join(check.check for check in report.checks)
    for part in ("MambaLayer alone", "batch 1, length 1", "next token over"):
        assert part in names
    nodes = export(source, tmp_path / "nodes", dtype="bf16", fuse_layers=False)
    report = verify(nodes, quick=True, backends=["native"])
    assert report.passed
    assert "implementation for MatMul" in report.not_run["onnxruntime CPU, native, whole model"]


def test_last_logits_only(source: Path, tmp_path: Path) -> None:
    out = export(source, tmp_path / "out", last_logits_only=True)
    assert failed(verify(out, quick=True)) == []


def test_backbone_from_memory(tmp_path: Path) -> None:
    backbone = MambaBackbone(MambaConfig(d_model=16, n_layer=2, d_state=8)).eval()
    out = export(backbone, tmp_path / "out")
    assert failed(verify(out, model=backbone, quick=True)) == []
    with pytest.raises(MambaExportError, match="exported from a model in memory: pass the model"):
        verify(out)


@pytest.mark.parametrize(
    "name",
    ["embeddings.weight", "backbone.layers.1.mixer.in_proj.weight", "backbone.layers.0.mixer.A",
     "backbone.layers.1.mixer.dt_proj.bias", "backbone.layers.0.mixer.conv1d.weight"],
)  # fmt: skip
def test_one_corrupted_weight_is_caught(copied: Path, name: str) -> None:
    model = ir.load(copied / contract.MODEL_FILE)
    value = model.graph.initializers[name]
    array = np.array(value.const_value.numpy())
    array.reshape(-1)[7] *= 1.001
    value.const_value = ir.tensor(array, name=name)
    loaded = {n: np.array(v.const_value.numpy()) for n, v in model.graph.initializers.items()}
    for other, tensor in loaded.items():  # off the file that is about to be overwritten
        model.graph.initializers[other].const_value = ir.tensor(tensor, name=other)
    ir.save(model, copied / contract.MODEL_FILE, external_data=contract.WEIGHTS_FILE)
    report = verify(copied, quick=True)
    assert not report.passed
    assert failed(report)[0] == "weights"
    assert name in report.checks[0].where


@pytest.mark.parametrize(
    ("function", "op_type", "output", "replacement", "layer"),
    [
        # What changes a layer's output alone shows first in the states of the layer after it.
        ("SelectiveScan", "Add", "y_skip", "Sub", 1),
        ("SelectiveScan", "Softplus", "positive_dt", "Relu", 0),
        ("CausalConv1d", "Mul", "sum_silu", "Add", 0),
        ("MambaLayer", "Add", "hidden_out", "Sub", 1),
    ],
    ids=["sign of the skip", "softplus", "silu", "residual of a layer"],
)
def test_a_changed_function_body_is_caught(
    copied: Path, function: str, op_type: str, output: str, replacement: str, layer: int
) -> None:
    path = copied / contract.MODEL_FILE
    model = onnx.load(str(path), load_external_data=False)
    body = next(f for f in model.functions if f.name == function)
    node = next(n for n in body.node if n.op_type == op_type and n.output[0] == output)
    node.op_type = replacement
    path.write_bytes(model.SerializeToString())
    report = verify(copied, quick=True)
    assert f"{function} alone" in failed(report)
    whole = next(c for c in report.checks if c.check == "batch 1, length 65")
    assert not whole.passed
    assert whole.where.startswith(f"layer {layer}"), "names the first layer that differs"


def test_a_changed_sign_inside_the_loop_is_caught(copied: Path) -> None:
    path = copied / contract.MODEL_FILE
    model = onnx.load(str(path), load_external_data=False)
    body = next(f for f in model.functions if f.name == "SelectiveScan")
    scan = next(n for n in body.node if n.op_type == "Scan")
    loop = next(a.g for a in scan.attribute if a.name == "body")
    node = next(n for n in loop.node if n.op_type == "Add")
    node.op_type = "Sub"
    path.write_bytes(model.SerializeToString())
    assert "SelectiveScan alone" in failed(verify(copied, quick=True))


def test_a_file_that_does_not_load_is_a_failure(copied: Path) -> None:
    weights = copied / contract.WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:1000])
    report = verify(copied, quick=True)
    assert not report.passed


def test_moved_source_is_named(source: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(source, tmp_path / "moved"))
    out = export(moved, tmp_path / "out")
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(MambaExportError, match=r"is not there any more: .* --model"):
        verify(out)
    assert verify(out, model=tmp_path / "elsewhere", quick=True).passed


def test_a_model_of_other_sizes_is_named(exported: Path) -> None:
    other = MambaLM(MambaConfig(d_model=32, n_layer=3, vocab_size=256)).eval()
    with pytest.raises(MambaExportError, match=r"has n_layer 3 and .* 2: pass the model that"):
        verify(exported, model=other)
    backbone = MambaBackbone(MambaConfig(d_model=32, n_layer=2, vocab_size=256)).eval()
    with pytest.raises(MambaExportError, match="do not both take tokens"):
        verify(exported, model=backbone)


def test_a_low_precision_model_is_compared_in_fp32(tiny_model: MambaLM, tmp_path: Path) -> None:
    half = cast(copy.deepcopy(tiny_model), torch.float16)
    out = export(half, tmp_path / "out", dtype="fp16")
    report = verify(out, model=half, quick=True)
    assert failed(report) == []
    assert half.backbone_dtype == torch.float16, "the caller's model is left alone"


def test_a_missing_backend_that_was_asked_for(exported: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(MambaExportError, match="onnxruntime CUDA was asked for and is not here"):
        verify(exported, backends=["cuda"])


def test_bounds() -> None:
    assert bound("operator", "fp32", 1.0) == 1e-5
    assert bound("model", "fp32", 1.0) == 1e-4
    assert bound("model", "fp16", 1e-3) == pytest.approx(2e-3 + 2**-10)
    assert bound("operator", "bf16", 1e-2) == pytest.approx(2e-2 + 2**-7)


def test_comparison_never_passes_nan_or_a_wrong_shape() -> None:
    truth = np.ones((2, 3), np.float32)
    broken = truth.copy()
    broken[1, 2] = np.nan
    check = compare("b", "c", broken, truth, 1e9, name="y")
    assert not check.passed
    assert check.where == "y(1, 2)"
    assert not compare("b", "c", truth[:1], truth, 1e9, name="y").passed
    assert math.isnan(relative_error(broken, truth))
    assert not Report("f", "fp32").passed, "nothing checked is no success"


def test_report_as_json_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    good = [Check("ORT", f"batch 1, length {n}", n * 1e-8, 1e-4, "output[0]") for n in (1, 2, 64)]
    bad = Check("ORT", "load", math.inf, 0.0, "model.onnx", "cannot be read")
    report = Report("out", "fp32", "PyTorch in float64", [*good, bad], {"CUDA": "no GPU"})
    content = json.loads(json.dumps(report.to_json()))
    assert content["passed"] is False
    assert content["truth"] == "PyTorch in float64"
    assert content["checks"][3]["error"] is None
    print_report(report)
    printed = capsys.readouterr().out
    for part in (
        "against PyTorch in float64",
        "batch 1, length 1 to 64",
        "FAIL",
        "not run: CUDA: no GPU",
        "1 of 4 checks failed",
    ):
        assert part in printed
