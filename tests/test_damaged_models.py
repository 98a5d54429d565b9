"""Damaged and foreign files in an exported folder: a right answer, one line, or a verification that fails."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from mamba_export import contract
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.tensorrt import bundle
from mamba_export.cli.app import main
from mamba_export.errors import EngineError, MambaExportError, SessionError
from mamba_export.export import export
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.folder.graph import check_weights, open_graph
from mamba_export.models import MambaConfig, MambaLM, checkpoints
from mamba_export.verify import verify

IDS = np.array([[1, 2, 3, 200, 5]])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = MambaLM(
        MambaConfig(d_model=8, n_layer=1, vocab_size=256, d_state=4, eos_token_id=0)
    ).eval()
    with torch.no_grad():
        model.embeddings.weight.mul_(20)
    folder = tmp_path_factory.mktemp("source")
    checkpoints.save(model, folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def intact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(source, tmp_path_factory.mktemp("intact") / "out")


@pytest.fixture
def damaged(intact: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(intact, tmp_path / "damaged"))


@pytest.fixture(scope="module")
def right(intact: Path) -> np.ndarray:
    return OrtSession(intact, providers=["CPUExecutionProvider"], threads=1).run(IDS)[0]


def logits(folder: Path) -> np.ndarray:
    return OrtSession(folder, providers=["CPUExecutionProvider"], threads=1).run(IDS)[0]


def one_line(call: Callable[[], Any]) -> str:
    """What an error of ours says; empty where there is none. Any other exception is the test's failure."""
    try:
        call()
    except MambaExportError as error:
        line = str(error)
        assert line.strip()
        assert "\n" not in line
        return line
    return ""


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with a bit flipped, cut, or with bytes changed, put in or appended."""
    changed, place = bytearray(content), rng.randrange(len(content))
    kind = rng.choice(["bit", "bit", "bit", "cut", "change", "insert", "append"])
    if kind == "bit":
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[place:]
    elif kind == "change":
        few = rng.randrange(1, 16)
        changed[place : place + few] = rng.randbytes(few)
    elif kind == "insert":
        changed[place:place] = rng.randbytes(rng.randrange(1, 64))
    else:
        changed += rng.randbytes(rng.randrange(1, 64))
    return bytes(changed)


FILES = (
    contract.MODEL_FILE,
    contract.WEIGHTS_FILE,
    contract.METADATA_FILE,
    contract.TOKENIZER_FILE,
)


@pytest.mark.parametrize("name", FILES)
def test_random_damage_of_a_file_is_a_right_answer_or_one_line(
    damaged: Path, tmp_path: Path, name: str
) -> None:
    path = damaged / name
    content = path.read_bytes()
    for seed in range(100 if name in (contract.MODEL_FILE, contract.METADATA_FILE) else 20):
        path.write_bytes(mutated(content, random.Random(f"{name} {seed}")))
        one_line(lambda: OrtSession(damaged, threads=1).generate("ab", max_new_tokens=2))
        shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
        one_line(lambda: bundle(damaged, tmp_path / "bundle"))


@pytest.mark.parametrize("name", [contract.MODEL_FILE, contract.WEIGHTS_FILE])
def test_what_passes_a_verification_computes_the_same(
    damaged: Path, right: np.ndarray, name: str
) -> None:
    path = damaged / name
    content = path.read_bytes()
    fails = 0
    for seed in range(20 if name == contract.MODEL_FILE else 4):
        path.write_bytes(mutated(content, random.Random(f"verified {seed}")))
        passed = []
        line = one_line(
            lambda: passed.append(verify(damaged, backends=["cpu"], quick=True).passed)  # noqa: B023
        )
        fails += bool(line) or not passed[0]
        if not line and passed[0]:
            np.testing.assert_allclose(logits(damaged), right, rtol=1e-4, atol=1e-4)
    assert fails > 1


def edited(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    path = folder / contract.MODEL_FILE
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def set_external(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
        entry = next(entry for entry in tensor.external_data if entry.key == key)
        entry.value = value

    return change


def resize(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    tensor.dims[0] = 2**40


EXTERNAL = {
    "above": set_external("location", "../intact/model.onnx.data"),
    "absolute": set_external("location", "/etc/passwd"),
    "a device": set_external("location", "/dev/zero"),
    "missing": set_external("location", "elsewhere.data"),
    "the folder": set_external("location", "."),
    "a negative offset": set_external("offset", "-8"),
    "an offset that is no number": set_external("offset", "x"),
    "an offset beyond the end": set_external("offset", "4096000"),
    "an offset of many digits": set_external("offset", "9" * 30),
    "another length": set_external("length", "8"),
    "a huge length": set_external("length", str(1 << 60)),
    "huge sizes": resize,
}


@pytest.mark.parametrize("change", EXTERNAL.values(), ids=EXTERNAL.keys())
def test_weights_that_are_not_where_they_should_be(
    damaged: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    edited(damaged, change)
    assert one_line(lambda: logits(damaged))
    assert one_line(lambda: bundle(damaged, tmp_path / "bundle"))
    passed = []
    if not one_line(lambda: passed.append(verify(damaged, backends=["cpu"], quick=True).passed)):
        assert passed == [False]


def test_weights_that_lead_out_of_the_folder_by_a_link(damaged: Path, tmp_path: Path) -> None:
    weights = damaged / contract.WEIGHTS_FILE
    weights.rename(tmp_path / "outside")
    weights.symlink_to(tmp_path / "outside")
    assert one_line(lambda: verify(damaged, backends=["cpu"], quick=True))
    assert one_line(lambda: bundle(damaged, tmp_path / "bundle"))


def test_a_function_that_calls_itself(damaged: Path, tmp_path: Path) -> None:
    def recurse(model: onnx.ModelProto) -> None:
        function = next(one for one in model.functions if one.name == "MambaLayer")
        call = copy.deepcopy(next(n for n in model.graph.node if n.op_type == "MambaLayer"))
        call.input[:] = function.input
        call.output[:] = ["once", "more", "again"]
        function.node.append(call)

    edited(damaged, recurse)
    for call in (
        lambda: verify(damaged, backends=["cpu"]),
        lambda: bundle(damaged, tmp_path / "bundle"),
    ):
        assert re.search(
            "calls itself|must not be recursive", one_line(call)
        )  # ours, or onnx's own
    assert "recursive" in one_line(lambda: logits(damaged))


def foreign() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_a_foreign_onnx_file_fails_the_verification(damaged: Path, tmp_path: Path) -> None:
    (damaged / contract.MODEL_FILE).write_bytes(foreign().SerializeToString())
    report = verify(damaged, backends=["cpu"], quick=True)
    assert [(check.check, check.passed) for check in report.checks] == [("interface", False)]
    assert "(input input_ids differs)" in report.checks[0].failure
    with pytest.raises(SessionError, match="input input_ids differs"):
        logits(damaged)
    with pytest.raises(EngineError, match="holds none of our operators"):
        bundle(damaged, tmp_path / "bundle")


def set_shape(content: dict[str, Any], key: str, axis: int, size: int | str) -> None:
    content[key][0]["shape"][axis] = size


METADATA: dict[str, Callable[[dict[str, Any]], object]] = {
    "vocab_size": lambda c: (c["tokens"].update(vocab_size=300), set_shape(c, "outputs", 2, 300)),
    "a state's width": lambda c: set_shape(c, "states", 1, 12),
    "a state's dtype": lambda c: c["states"][0].update(dtype="fp16"),
    "an input's dtype": lambda c: c["inputs"][0].update(dtype="int32"),
    "an input's name": lambda c: c["inputs"][0].update(name="ids"),
    "an axis' name": lambda c: set_shape(c, "outputs", 1, "steps"),
    "an axis that is fixed": lambda c: set_shape(c, "inputs", 1, 7),
    "a state less": lambda c: c["states"].pop(),
    "an output more": lambda c: c["outputs"].append({**c["outputs"][0], "name": "more"}),
}


@pytest.mark.parametrize("change", METADATA.values(), ids=METADATA.keys())
def test_metadata_that_describes_another_graph(
    damaged: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    path = damaged / contract.METADATA_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    words = r"is not the file that damaged's metadata describes \((input|output) \S+ differs\)"
    with pytest.raises(SessionError, match=words):
        logits(damaged)
    with pytest.raises(EngineError, match=words):
        bundle(damaged, tmp_path / "bundle")
    report = []
    if not one_line(lambda: report.append(verify(damaged, backends=["cpu"], quick=True))):
        assert not report[0].passed
        assert report[0].checks[0].check == "interface"


def test_another_end_of_text_fails_the_verification(damaged: Path) -> None:
    path = damaged / contract.METADATA_FILE
    content = json.loads(path.read_text())
    content["tokens"]["eos_token_id"] = 7
    path.write_text(json.dumps(content))
    report = verify(damaged, backends=["cpu"], quick=True)
    assert [check.check for check in report.checks if not check.passed] == ["end of text"]


CONTENTS = {
    "empty": b"",
    "a byte": b"\0",
    "text": b"not a model",
    "zeros": bytes(4096),
    "an empty model": onnx.ModelProto().SerializeToString(),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_model_that_cannot_be_opened_exits_with_2_and_one_line(
    damaged: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    path = damaged / contract.MODEL_FILE
    path.write_bytes(content)
    for arguments in (
        ["verify", str(damaged), "--backend", "cpu"],
        ["run", str(damaged), "--prompt", "a"],
        ["build", str(damaged), "--bundle", str(tmp_path / "bundle")],
    ):
        with pytest.raises(SystemExit) as exit_code:
            main(arguments)
        assert exit_code.value.code == 2
        written = capsys.readouterr()
        [line] = written.err.splitlines()
        assert line.startswith("error: ")
        assert str(path) in line
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_differs_exits_with_1(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged / contract.WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[3] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(SystemExit) as exit_code:
        main(["verify", str(damaged), "--backend", "cpu", "--quick"])
    assert exit_code.value.code == 1
    assert "weights" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(3))
def test_one_flipped_bit_of_the_weights_is_seen(damaged: Path, seed: int) -> None:
    path = damaged / contract.WEIGHTS_FILE
    model = open_graph(damaged / contract.MODEL_FILE, error=SessionError)
    check_weights(damaged / contract.MODEL_FILE, model, error=SessionError)
    tensor = next(t for t in model.graph.initializer if t.name == "embeddings.weight")
    place = {entry.key: entry.value for entry in tensor.external_data}
    rng = random.Random(seed)
    content = bytearray(path.read_bytes())
    # Of one number any bit but the sign of zero.
    content[int(place["offset"]) + rng.randrange(int(place["length"]))] ^= 1 << rng.randrange(7)
    path.write_bytes(content)
    report = verify(damaged, backends=["cpu"], quick=True)
    assert not report.passed
    assert not report.checks[0].passed
    assert report.checks[0].check == "weights"


def test_onnx_runtimes_own_log_stays_off_standard_error(damaged: Path) -> None:
    """It tells a shape for which there is no memory in lines of its own."""

    def swell(model: onnx.ModelProto) -> None:
        one = next(one for one in model.graph.initializer if one.name.endswith(".D"))
        one.dims[:] = [1 << 62]

    edited(damaged, swell)
    result = subprocess.run(
        [sys.executable, "-m", "mamba_export", "run", str(damaged), "--prompt", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
