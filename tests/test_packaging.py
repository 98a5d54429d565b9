"""The installed distribution: what it lists is there, and what it reports of itself is true.

From a source tree that was never installed, what needs no list of files is tested.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import mamba_export
from mamba_export import cuda_queries
from mamba_export.backends.tensorrt import library, names
from mamba_export.cli import doctor
from mamba_export.libraries import CUSTOM_OPS, KERNELS, TRT_PLUGIN, installed
from mamba_export.operators import native

ROOT = Path(__file__).parents[1]


def _distribution() -> metadata.Distribution | None:
    try:
        return metadata.distribution("mamba_export")
    except metadata.PackageNotFoundError:
        return None


def _libraries() -> list[Path]:
    """Those that the distribution lists; of sources that nobody installed, those beside them."""
    if DISTRIBUTION is None:
        found = [installed(one.file) for one in (KERNELS, CUSTOM_OPS, TRT_PLUGIN)]
        return [path for path in found if path is not None]
    files = DISTRIBUTION.files or ()
    return [Path(str(file.locate())).resolve() for file in files if file.suffix == ".so"]


DISTRIBUTION = _distribution()
LIBRARIES = _libraries()
NEEDS_LIBRARIES = pytest.mark.skipif(
    not LIBRARIES, reason="mamba_export was installed without its compiled libraries"
)


@pytest.fixture
def distribution() -> metadata.Distribution:
    if DISTRIBUTION is None:
        pytest.skip("no metadata of mamba_export: its sources were not installed (pip install .)")
    return DISTRIBUTION


def test_version_is_the_projects() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^version = "(.*)"', project, re.MULTILINE) == [mamba_export.__version__]


def test_version_is_the_distributions(distribution: metadata.Distribution) -> None:
    assert distribution.version == mamba_export.__version__


def test_metadata_say_whose_it_is_and_under_which_terms(
    distribution: metadata.Distribution,
) -> None:
    found = distribution.metadata
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Author"] == "The mamba_export developers"
    assert "Typing :: Typed" in (found.get_all("Classifier") or ())
    license_text = distribution.read_text("licenses/LICENSE") or ""
    assert license_text == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in license_text


def test_type_checkers_are_told_that_the_package_is_typed() -> None:
    assert (Path(mamba_export.__file__).parent / "py.typed").is_file()


def test_every_name_of_the_api_is_there_and_listed() -> None:
    assert dir(mamba_export) == sorted([*mamba_export.__all__, "__version__"])
    for name in mamba_export.__all__:
        assert callable(getattr(mamba_export, name))


@NEEDS_LIBRARIES
def test_every_listed_library_exists_and_is_found(distribution: metadata.Distribution) -> None:
    assert all(path.is_file() for path in LIBRARIES)
    assert {path.parent.name for path in LIBRARIES} == {"lib"}
    if not os.environ.get(native.LIBRARY_VARIABLE):
        assert native.library().path.resolve() in LIBRARIES


@NEEDS_LIBRARIES
def test_wheel_is_of_every_python_and_of_this_platform(distribution: metadata.Distribution) -> None:
    wheel = distribution.read_text("WHEEL") or ""
    assert "Tag: py3-none-" in wheel
    assert "Tag: py3-none-any" not in wheel


# What ships; a test build has the harness beside it, which plays TensorRT's part and offers names of its own.
SHIPPED = [path for path in LIBRARIES if path.name.startswith("libmamba_export_")]
EVERY_LIBRARY = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)


def binutil(name: str, *arguments: str | Path) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}, of binutils")
    return subprocess.run([name, *arguments], capture_output=True, text=True, check=True).stdout


@NEEDS_LIBRARIES
@EVERY_LIBRARY
def test_library_needs_the_c_library_alone(path: Path) -> None:
    """So one with CUDA kernels loads where there is no GPU, no driver and no CUDA toolkit."""
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", binutil("readelf", "-dW", path)))
    glibc = r"lib(c|m|dl|rt|pthread)\.so\.\d|ld-linux.*\.so\.\d"
    assert needed
    assert not {name for name in needed if not re.fullmatch(glibc, name)}


@NEEDS_LIBRARIES
@EVERY_LIBRARY
def test_library_offers_our_functions_alone(path: Path) -> None:
    """Not those of the C++ and CUDA runtimes inside it, which another library could be bound to."""
    lines = binutil("nm", "-D", "--defined-only", path).splitlines()
    offered = {line.split()[-1] for line in lines}
    entries = {"RegisterCustomOps", "getCreators", "setLoggerFinder"}
    assert {"mamba_last_error", "mamba_cuda_check_device"} <= offered
    assert not {name for name in offered - entries if not name.startswith(("mamba_", "mamba2_"))}


@NEEDS_LIBRARIES
@EVERY_LIBRARY
def test_library_names_no_folder_of_the_machine_that_built_it(path: Path) -> None:
    assert str(Path(__file__).parents[1] / "plugins").encode() not in path.read_bytes()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


RUN_ALL = """
import onnxruntime, torch
from mamba_export.operators import selective_scan
from mamba_export.backends.onnxruntime import custom_ops
x, B = torch.randn(1, 5, 8), torch.randn(1, 5, 16)
y, _ = selective_scan(x, x, -torch.rand(8, 16), B, B)
custom_ops.register(onnxruntime.SessionOptions(), True)
print(bool(torch.isfinite(y).all()))
"""


@NEEDS_LIBRARIES
def test_runs_on_a_machine_without_compilers(tmp_path: Path) -> None:
    """No program at all can be found, and no CUDA library."""
    result = run_python(
        RUN_ALL, PATH=str(tmp_path), LD_LIBRARY_PATH="", MAMBA_EXPORT_BACKEND="native"
    )
    assert result.stdout == "True\n", result.stderr


def test_doctor_reports_every_part_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.print_report(json_output=True)
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["mamba_export"]["detail"].startswith(mamba_export.__version__)
    for what in ("python", "torch", "onnx", "onnxruntime"):
        assert rows[what]["state"] == "ok"
    assert all(row["detail"] for row in rows.values())
    kernels = rows["kernels for PyTorch"]
    assert kernels["state"] == ("ok" if native.available() else "absent")
    if native.available():
        assert str(native.library().path) in kernels["detail"]


@pytest.mark.skipif(not native.available(), reason=native.why_absent())
def test_doctor_says_what_the_gpu_kernels_are_built_for() -> None:
    rows = {finding.what: finding for finding in doctor.report()}
    found = rows["CUDA kernels for PyTorch"]
    built = cuda_queries.cuda_architectures(native.library().functions)
    why_not = native.why_not_on(torch.device("cuda", 0))
    assert found.state == ("absent" if why_not else "ok")
    if built:
        assert found.detail.startswith("built for sm_" + ", sm_".join(built.split()))
        assert why_not in found.detail
        assert ("runs on GPU 0" in found.detail) == (not why_not)
    else:
        assert found.detail == why_not
    assert rows["CUDA kernels for ONNX Runtime"].state in ("ok", "absent")


def test_doctor_tells_of_tensorrt() -> None:
    rows = {finding.what: finding for finding in doctor.report()}
    for kind in names.KINDS:
        found = rows[kind.title]
        assert found.state == ("ok" if library.is_installed(kind) else "absent")
        expected = library.load(kind).version if found.state == "ok" else kind.install
        assert expected in found.detail
    path = TRT_PLUGIN.path()
    assert (str(path) if path else TRT_PLUGIN.why_absent()) in rows["TensorRT plugins"].detail
    assert rows["mamba_run"].state == ("ok" if installed("mamba_run") else "absent")


def test_doctor_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.print_report()
    printed = capsys.readouterr().out
    assert "kernels for PyTorch" in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 80


def test_doctor_says_why_something_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "none")
    rows = {finding.what: finding for finding in doctor.report()}
    found = rows["kernels for PyTorch"]
    assert (found.state, found.detail) == ("absent", native.why_absent())
    assert "switched off by MAMBA_EXPORT_KERNELS=none" in found.detail
    assert rows["CUDA kernels for PyTorch"].detail == found.detail


def test_a_damaged_library_is_one_line_and_no_crash(tmp_path: Path) -> None:
    damaged = tmp_path / native.LIBRARY_FILE
    damaged.write_bytes(b"\x7fELF and no more")
    result = run_python(
        "from mamba_export.operators import native; print(native.available(), native.why_absent())",
        MAMBA_EXPORT_KERNELS=str(damaged),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("False ")
    assert "cannot be loaded" in result.stdout
    assert len(result.stdout.splitlines()) == 1
