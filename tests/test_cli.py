"""The command line, as a user meets it: help, one-line errors, exit codes, the script in tools/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import typer

from mamba_export import contract
from mamba_export.backends import registry
from mamba_export.backends.tensorrt.names import KINDS
from mamba_export.cli.app import app
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import MambaLM, checkpoints

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tensorrt",
    "tensorrt_rtx",
    "tokenizers",
    "numpy",
)


def command(*arguments: str | Path, script: str | None = None) -> subprocess.CompletedProcess[str]:
    start = (
        [sys.executable, str(ROOT / script)] if script else [sys.executable, "-m", "mamba_export"]
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [*start, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )


@pytest.fixture(scope="module")
def source(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "model"
    checkpoints.save(tiny_model, folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def exported(source: Path) -> Path:
    out = source.parent / "out"
    result = command("export", source, "-o", out)
    assert result.returncode == 0, result.stderr
    assert "wrote" in result.stderr
    assert "arning" not in result.stderr
    return out


def test_layers_are_one_node_or_many(source: Path, exported: Path, tmp_path: Path) -> None:
    def operators(folder: Path) -> set[str]:
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        return {node.op_type for node in model.graph.node}

    assert contract.MAMBA_LAYER.name in operators(exported)
    assert contract.SELECTIVE_SCAN.name not in operators(exported)
    result = command("export", source, "-o", tmp_path / "out", "--no-fuse-layers")
    assert result.returncode == 0, result.stderr
    single = operators(tmp_path / "out")
    assert contract.MAMBA_LAYER.name not in single
    assert {contract.SELECTIVE_SCAN.name, contract.CAUSAL_CONV1D.name, "MatMul"} <= single


@pytest.mark.parametrize("name", ["export", "build", "verify", "run"])
def test_help_teaches(name: str) -> None:
    result = command(name, "--help")
    assert result.returncode == 0
    assert "OUT" in result.stdout


def test_version() -> None:
    assert command("--version").stdout.startswith("mamba-export 0.")


def test_verify_prints_a_table_and_json(exported: Path) -> None:
    table = command("verify", exported, "--quick")
    assert table.returncode == 0, table.stderr
    assert "checks passed" in table.stdout
    report = json.loads(command("verify", exported, "--quick", "--json").stdout)
    assert report["passed"] is True


def test_verify_exits_with_1_when_a_check_fails(exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model = checkpoints.load(
        json.loads((exported / "mamba_export.json").read_text())["source"]["path"]
    )
    model.model.backbone.layers[0].mixer.D.data += 0.1
    checkpoints.save(model.model, other)
    result = command("verify", exported, "--quick", "--model", other)
    assert result.returncode == 1
    assert "FAIL" in result.stdout
    assert "Traceback" not in result.stderr


def test_run_streams_text(exported: Path) -> None:
    result = command("run", exported, "--prompt", "In the ", "--max-new-tokens", "20")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("In the ")
    assert "tokens/s" in result.stderr


def test_script_exports_and_verifies(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    result = command(source, "-o", out, "--quick", script="tools/export_engine.py")
    assert result.returncode == 0, result.stderr
    assert "checks passed" in result.stdout
    assert f"{out} is ready" in result.stderr


def test_script_exits_with_1_when_a_check_fails(source: Path, tmp_path: Path) -> None:
    """What is not a number never passes, though both sides agree on it."""
    model = checkpoints.load(source).model
    model.backbone.layers[0].mixer.D.data.fill_(float("nan"))
    checkpoints.save(model, tmp_path / "model")
    result = command(
        tmp_path / "model", "-o", tmp_path / "out", "--quick", script="tools/export_engine.py"
    )
    assert result.returncode == 1, result.stderr
    assert "FAIL" in result.stdout
    assert "is ready" not in result.stderr


def test_script_has_the_options_of_export() -> None:
    result = command("--help", script="tools/export_engine.py")
    assert result.returncode == 0
    for option in ("--engine", "--quick", "--batch", "--no-plugin", "--runtime", "--force"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ver", {"verify"}),
        ("verify --backend ", {"auto", *registry.variants()}),
        ("export --dtype ", set(contract.DTYPES)),
        ("build --runtime ", {"auto", *(kind.option for kind in KINDS)}),
        ("run --backend ", {row.option for row in registry.runtimes()}),
        ("run --provider c", {"cpu", "cuda"}),
    ],
    ids=lambda value: value.strip() if isinstance(value, str) else "",
)
def test_the_shell_completes(words: str, expected: set[str]) -> None:
    """As bash asks. What is offered is what there is: the choices are written nowhere else."""
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr))\n"
        "from mamba_export.cli import main\n"
        "main()\n"
    )
    words = f"mamba-export {words}"
    environment = {
        **os.environ,
        "_MAMBA_EXPORT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert set(result.stdout.split()) == expected
    assert result.stderr == "[]\n", "a key press must not wait for them"


def test_help_loads_no_runtime() -> None:
    script = f"import sys, mamba_export.cli; print(sorted(set({HEAVY}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_doctor() -> None:
    found = json.loads(command("doctor", "--json").stdout)
    kernels = {
        f"{kind}kernels for {host}"
        for kind in ("", "CUDA ")
        for host in ("PyTorch", "ONNX Runtime")
    }
    engines = {"TensorRT", "TensorRT-RTX", "TensorRT plugins", "mamba_run"}
    assert {"torch", "onnxruntime"} | kernels | engines <= {entry["what"] for entry in found}
    assert command("doctor").returncode == 0


def test_library_path() -> None:
    result = command("library-path")
    if CUSTOM_OPS.path() is None:
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
    else:
        assert Path(result.stdout.strip()).is_file()


def _mamba2(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def _foreign(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"not ours")
    return folder


BAD = {
    "missing model": (lambda s, e, t: ["export", t / "none", "-o", t / "out"], "none"),
    "download without a network": (
        lambda s, e, t: ["export", "someone/some-mamba", "-o", t / "out"], "local folder"),
    "another architecture": (lambda s, e, t: ["export", _mamba2(t / "m"), "-o", t / "out"], "llama"),
    "output exists": (lambda s, e, t: ["export", s, "-o", e], "--force"),
    "opset": (lambda s, e, t: ["export", s, "-o", t / "out", "--opset", "3"], "18 to 23"),
    "dtype": (lambda s, e, t: ["export", s, "-o", t / "out", "--dtype", "int4"], "fp16"),
    "quick without verify": (
        lambda s, e, t: ["export", s, "-o", t / "out", "--quick"], "--quick is for --verify"),
    "no such backend": (lambda s, e, t: ["verify", e, "--backend", "tpu"], "cuda-native"),
    "no such runtime": (
        lambda s, e, t: ["export", s, "-o", t / "out", "--engine", "--runtime", "trt"], "tensorrt-rtx"),
    "no such range": (
        lambda s, e, t: ["export", s, "-o", t / "out", "--engine", "--batch", "4,1,2"], "--batch"),
    "no such past": (lambda s, e, t: ["build", e, "--past", "-1,2,3"], "--past -1,2,3: give"),
    "verify a missing folder": (lambda s, e, t: ["verify", t / "none"], "none"),
    "verify what is not ours": (lambda s, e, t: ["verify", _foreign(t / "f")], "mamba_export.json"),
    "verify with a text that is missing": (
        lambda s, e, t: ["verify", e, "--text", t / "no.txt"], "no.txt"),
    "run a missing folder": (lambda s, e, t: ["run", t / "none", "--prompt", "a"], "none"),
    "run what is not ours": (
        lambda s, e, t: ["run", _foreign(t / "f"), "--prompt", "a"], "mamba_export.json"),
    "empty prompt": (lambda s, e, t: ["run", e, "--prompt", ""], "prompt is empty"),
    "no prompt": (lambda s, e, t: ["run", e], "--prompt"),
    "temperature": (lambda s, e, t: ["run", e, "--prompt", "a", "--temperature", "-1"], "temperature"),
    "no tokens asked for": (
        lambda s, e, t: ["run", e, "--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_code_2(
    case: str, source: Path, exported: Path, tmp_path: Path
) -> None:
    arguments, word = BAD[case]
    result = command(*arguments(source, exported, tmp_path))
    assert result.returncode == 2, result.stdout + result.stderr
    assert word in result.stderr
    assert "Traceback" not in result.stderr
    if result.stderr.startswith("error: "):
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_options_are_lower_case() -> None:
    """typer 0.27 took an option's metavar for its name where they differ in case alone."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    names = [
        name for one in commands.values() for param in one.params for name in param.opts
        if name.startswith("-")
    ]  # fmt: skip
    assert "--model" in names
    assert [name for name in names if name != name.lower()] == []
