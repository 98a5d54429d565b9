"""A base installation: what pyproject.toml's own dependencies give, without PyTorch and what exporting needs.

The process sees a folder of links to those packages alone, so any other import fails as it would there.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mamba_export import requirements
from mamba_export.export import export
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.models import MambaLM

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib to read pyproject.toml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
COMMAND = "from mamba_export.cli import main; main()"


def distributions(needed: list[str]) -> dict[str, metadata.Distribution]:
    """What these requirements need, by name, with what that needs in turn."""
    found: dict[str, metadata.Distribution] = {}
    pending = [Requirement(line) for line in needed]
    while pending:
        requirement = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name.lower() not in found:
            one = metadata.distribution(requirement.name)
            found[requirement.name.lower()] = one
            pending += [Requirement(line) for line in one.requires or ()]
    return found


def site_of(folder: Path, needed: list[str]) -> Path:
    """A folder with links to mamba_export, its compiled libraries, and what the requirements need."""
    folder.mkdir()
    (folder / "mamba_export").symlink_to(ROOT / "mamba_export")
    for one in distributions(needed).values():
        for name in {file.parts[0] for file in one.files or () if file.parts[0] != ".."}:
            place = Path(str(one.locate_file(name)))
            if place.exists() and not (folder / name).exists():
                (folder / name).symlink_to(place)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site_of(tmp_path_factory.mktemp("bare") / "site", PROJECT["dependencies"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed = [*PROJECT["dependencies"], *EXTRAS["onnxruntime"]]
    return site_of(tmp_path_factory.mktemp("base") / "site", needed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: MambaLM) -> Path:
    place = tmp_path_factory.mktemp("exported")
    (place / "tokenizer").mkdir()
    write_byte_tokenizer(place / "tokenizer")
    export(tiny_model, place / "out", tokenizer=place / "tokenizer")
    return place / "out"


def run(site: Path, code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_folder_of_links_hides_the_rest(base: Path, bare: Path) -> None:
    code = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    names = sorted(requirements.COMMANDS)
    assert run(base, code, *names).stdout == "['huggingface_hub', 'onnxruntime']\n"
    assert run(bare, code, *names).stdout == "['huggingface_hub']\n"  # tokenizers needs it


def test_the_api_is_listed_without_any_runtime(bare: Path) -> None:
    code = "import mamba_export as m; print(*dir(m)); assert set(m.__all__) <= set(dir(m))"
    result = run(bare, code)
    assert result.returncode == 0, result.stderr
    assert {"build", "export", "verify", "OrtSession", "TrtSession"} <= set(result.stdout.split())


def test_a_session_generates_without_pytorch(base: Path, folder: Path) -> None:
    code = """
import sys, mamba_export
[one] = mamba_export.OrtSession(sys.argv[1]).generate("Ge", max_new_tokens=4, stop_at_end=False)
print(len(one.tokens), "torch" in sys.modules)
"""
    result = run(base, code, folder)
    assert result.stdout == "4 False\n", result.stderr


def test_the_command_runs_a_folder_without_pytorch(base: Path, folder: Path) -> None:
    result = run(base, COMMAND, "run", folder, "--prompt", "Ge", "--max-new-tokens", "4")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Ge")


def test_doctor_names_what_is_absent(bare: Path) -> None:
    result = run(bare, COMMAND, "doctor", "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["what"]: row for row in json.loads(result.stdout)}
    for package in ("torch", "triton", "onnx", "onnxscript", "onnxruntime", "cuda-bindings"):
        assert rows[package]["state"] == "absent"
        assert requirements.COMMANDS[package] in rows[package]["detail"]
    assert not [row for row in rows.values() if row["state"] == "broken"]


LINE = "error: this needs {package}, which is not installed: {command}\n"


@pytest.mark.parametrize(
    ("arguments", "packages"),
    [
        (["export", "models/kjv-bytes", "-o", "{out}"], {"torch", "onnx", "onnx_ir"}),
        (["verify", "{folder}"], {"torch", "onnx"}),
        (["build", "{folder}"], {"onnx"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_names_the_package_that_it_lacks(
    base: Path, folder: Path, tmp_path: Path, arguments: list[str], packages: set[str]
) -> None:
    out = tmp_path / "out"
    result = run(base, COMMAND, *(a.format(out=out, folder=folder) for a in arguments))
    assert result.returncode == 2
    expected = {
        LINE.format(package=package, command=requirements.COMMANDS[package]) for package in packages
    }
    assert result.stderr in expected
    assert not out.exists()


def test_running_names_onnxruntime(bare: Path, folder: Path) -> None:
    result = run(bare, COMMAND, "run", folder, "--prompt", "Ge")
    command = "pip install onnxruntime, or onnxruntime-gpu for NVIDIA GPUs"
    assert (result.returncode, result.stderr) == (
        2,
        LINE.format(package="onnxruntime", command=command),
    )


def test_verify_is_told_which_runtime_is_absent(bare: Path) -> None:
    code = "from mamba_export.backends import registry; print(registry.present(['cpu', 'native', 'trt']))"
    result = run(bare, code)
    assert result.returncode == 0, result.stderr
    found, missing = ast.literal_eval(result.stdout)
    assert found == []
    assert list(missing) == ["ONNX Runtime", "TensorRT"]
    assert requirements.COMMANDS["onnxruntime"] in missing["ONNX Runtime"]


def test_the_api_raises_one_line_that_is_an_import_error_too(bare: Path) -> None:
    code = """
import mamba_export
for catch in (ImportError, mamba_export.MambaExportError):
    try:
        mamba_export.OrtSession
    except catch as error:
        print(error)
"""
    result = run(bare, code)
    command = requirements.COMMANDS["onnxruntime"]
    assert result.stdout.splitlines() == 2 * [
        f"this needs onnxruntime, which is not installed: {command}"
    ], result.stderr


def test_an_unknown_missing_module_stays_what_it_is() -> None:
    assert requirements.missing(ModuleNotFoundError("no", name="mamba_export.no")) is None
    with pytest.raises(ModuleNotFoundError), requirements.named():
        raise ModuleNotFoundError("No module named 'other'", name="other")


def test_every_command_names_an_extra_that_has_the_package() -> None:
    known = {
        Requirement(line).name.replace("-", "_").removesuffix("_cu13")
        for lines in EXTRAS.values()
        for line in lines
    }
    for name, command in requirements.COMMANDS.items():
        package = name.replace("-", "_")
        assert package in known
        extra = command.partition("[")[2].partition("]")[0]
        if extra:
            names = [Requirement(line).name.replace("-", "_") for line in EXTRAS[extra]]
            assert package in [name.removesuffix("_cu13") for name in names]
