"""The installed distribution: what it lists is there, and what it reports of itself is true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import mamba_export
from mamba_export import doctor
from mamba_export.ops import native

DISTRIBUTION = metadata.distribution("mamba_export")
LIBRARIES = [
    Path(str(file.locate())).resolve() for file in DISTRIBUTION.files or () if file.suffix == ".so"
]
NEEDS_LIBRARIES = pytest.mark.skipif(
    not LIBRARIES, reason="mamba_export was installed without its compiled libraries"
)


def test_version_is_the_distributions() -> None:
    assert DISTRIBUTION.version == mamba_export.__version__


@NEEDS_LIBRARIES
def test_every_listed_library_exists_and_is_found() -> None:
    assert all(path.is_file() for path in LIBRARIES)
    assert {path.parent.name for path in LIBRARIES} == {"lib"}
    if not os.environ.get(native.LIBRARY_VARIABLE):
        assert native.library().path.resolve() in LIBRARIES


@NEEDS_LIBRARIES
def test_wheel_is_of_every_python_and_of_this_platform() -> None:
    wheel = DISTRIBUTION.read_text("WHEEL") or ""
    assert "Tag: py3-none-" in wheel
    assert "Tag: py3-none-any" not in wheel


@NEEDS_LIBRARIES
@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_library_needs_no_cpp_runtime_and_no_framework(path: Path) -> None:
    content = path.read_bytes()
    for name in (b"libstdc++.so", b"libgcc_s.so", b"libtorch", b"libonnxruntime", b"libpython"):
        assert name not in content


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


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


def test_a_damaged_library_is_one_line_and_no_crash(tmp_path: Path) -> None:
    damaged = tmp_path / native.LIBRARY_FILE
    damaged.write_bytes(b"\x7fELF and no more")
    result = run_python(
        "from mamba_export.ops import native; print(native.available(), native.why_absent())",
        MAMBA_EXPORT_KERNELS=str(damaged),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("False ")
    assert "cannot be loaded" in result.stdout
    assert len(result.stdout.splitlines()) == 1
