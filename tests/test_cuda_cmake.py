"""plugins/cuda.cmake: what is built for which GPU, and one line about each thing that is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CMAKE = shutil.which("cmake")
NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(CMAKE is None, reason="needs cmake")

PROJECT = f"""
cmake_minimum_required(VERSION 3.22)
project(check LANGUAGES $ENV{{LANGUAGES}})
include({ROOT}/plugins/cuda.cmake)
foreach(name FOUND NAMES OPTIONS ABSENCE)
  message(STATUS "${{name}}=${{MAMBA_CUDA_${{name}}}}")
endforeach()
message(STATUS "HOPPER=${{MAMBA_SM90A_OPTIONS}}")
"""
# An nvcc of which everything can be wrong.
FAKE_NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.99";;
  --list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\nsm_90a\\n';;
  *) echo 'In file included from nowhere:' >&2; echo '{complaint}' >&2; exit 1;;
esac
"""
TOO_NEW = r'host_config.h:143:2: error: #error -- "unsupported GNU version! ($GCC \ 16; CUDA)"'


class Configured:
    """What a run of cmake printed."""

    def __init__(self, folder: Path, languages: str, environment: dict[str, str], **options: str):
        defaults = {"MAMBA_CUDA": "AUTO", "MAMBA_CUDA_ARCHITECTURES": "all"}
        (folder / "CMakeLists.txt").write_text(PROJECT)
        result = subprocess.run(
            [
                CMAKE, "-S", folder, "-B", folder / "build", "-G", "Unix Makefiles",
                *(f"-D{name}={value}" for name, value in {**defaults, **options}.items()),
            ],
            env={**os.environ, "LANGUAGES": languages, **environment},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        self.failed = result.returncode != 0
        self.lines = [
            line.strip().removeprefix("-- ").removeprefix("mamba_export: ")
            for line in (result.stdout + result.stderr).splitlines()
            if "mamba_export: " in line
        ]
        self.values = dict(re.findall(r"^-- ([A-Z]+)=(.*)$", result.stdout, re.MULTILINE))


@pytest.fixture
def nvcc(tmp_path: Path):
    """Writes an nvcc; returns the environment that selects it."""

    def write(release: str = "13.0", complaint: str = "error: broken") -> dict[str, str]:
        path = tmp_path / "nvcc"
        path.write_text(FAKE_NVCC.format(release=release, complaint=complaint))
        path.chmod(0o755)
        return {"CUDACXX": str(path)}

    return write


def assert_left_out(
    folder: Path, environment: dict[str, str], reason: str, advice: str, **options: str
) -> None:
    """AUTO goes on with one line, which the library keeps; ON ends with it."""
    found = Configured(folder, "NONE", environment, **options)
    assert not found.failed
    assert found.lines == [f"CUDA kernels are left out: {reason} ({advice})"]
    assert found.values["FOUND"] == "FALSE"
    assert found.values["ABSENCE"] == reason
    shutil.rmtree(folder / "build")
    found = Configured(folder, "NONE", environment, MAMBA_CUDA="ON", **options)
    assert found.failed
    assert found.lines == [f"MAMBA_CUDA=ON, and {reason}: {advice}"]


def test_no_nvcc(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    nowhere = {
        "CMAKE_FIND_ROOT_PATH": str(tmp_path),
        "CMAKE_FIND_ROOT_PATH_MODE_PROGRAM": "ONLY",
        "CMAKE_MAKE_PROGRAM": make,
    }
    environment = {"CUDACXX": "", "CUDA_HOME": "", "CUDA_PATH": ""}
    advice = "install the CUDA toolkit, or set CUDACXX to its nvcc"
    assert_left_out(tmp_path, environment, "no nvcc was found", advice, **nowhere)


def test_nvcc_that_does_not_run(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "nvcc"
    assert_left_out(
        tmp_path,
        {"CUDACXX": str(missing)},
        f"{missing} does not run (No such file or directory)",
        "set CUDACXX to the nvcc of a CUDA toolkit",
    )


def test_nvcc_that_is_too_old(tmp_path: Path, nvcc) -> None:
    assert_left_out(
        tmp_path,
        nvcc(release="11.4"),
        f"{tmp_path}/nvcc is of CUDA 11.4",
        "CUDA 11.8 or newer is needed: set CUDACXX to its nvcc",
    )


def test_nvcc_that_cannot_compile(tmp_path: Path, nvcc) -> None:
    found = Configured(tmp_path, "NONE", nvcc(complaint=TOO_NEW))
    assert found.lines == [
        f"CUDA kernels are left out: {tmp_path}/nvcc cannot compile (host_config.h:143:2: error: #error "
        "-- unsupported GNU version! ( GCC 16 CUDA)) "
        "(set CUDAHOSTCXX to a C++ compiler that CUDA 13.0 supports)"
    ]
    assert not set('"\\;$') & set(found.values["ABSENCE"]), "it becomes a C string"


def test_left_out_on_request(tmp_path: Path, nvcc) -> None:
    found = Configured(tmp_path, "NONE", nvcc(), MAMBA_CUDA="OFF")
    assert found.lines == ["CUDA kernels are left out (MAMBA_CUDA=OFF)"]
    assert found.values["ABSENCE"] == "MAMBA_CUDA was OFF"


def test_left_out_of_sanitizer_builds(tmp_path: Path, nvcc) -> None:
    advice = "sanitizers are for the CPU; compute-sanitizer checks CUDA"
    assert_left_out(
        tmp_path, nvcc(), "MAMBA_SANITIZE is set", advice, MAMBA_SANITIZE="address,undefined"
    )


@pytest.mark.parametrize("value", ["sm_90", "90a", "newest", "90 120", ""])
def test_architectures_that_are_no_numbers(tmp_path: Path, nvcc, value: str) -> None:
    found = Configured(tmp_path, "NONE", nvcc(), MAMBA_CUDA_ARCHITECTURES=value)
    assert found.failed
    assert found.lines == [
        f"MAMBA_CUDA_ARCHITECTURES is '{value}', expected all, or numbers such as 90 or 87,120"
    ]


def test_architectures_that_nvcc_does_not_know(tmp_path: Path, nvcc) -> None:
    found = Configured(tmp_path, "NONE", nvcc(), MAMBA_CUDA_ARCHITECTURES="90,120")
    assert found.failed
    assert found.lines == [
        "MAMBA_CUDA_ARCHITECTURES names 120, and CUDA 13.0 compiles for 75 80 90 90 "
        "(MAMBA_CUDA=OFF builds for the CPU alone)"
    ]


def test_a_switch_of_another_name(tmp_path: Path, nvcc) -> None:
    found = Configured(tmp_path, "NONE", nvcc(), MAMBA_CUDA="maybe")
    assert found.failed
    assert found.lines == ["MAMBA_CUDA is 'maybe', expected AUTO, ON or OFF"]


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("given", ["90", "90,80,90", "all"])
def test_architectures_that_are_built(tmp_path: Path, given: str) -> None:
    found = Configured(tmp_path, "CXX", {}, MAMBA_CUDA="ON", MAMBA_CUDA_ARCHITECTURES=given)
    assert not found.failed
    names = found.values["NAMES"]
    assert found.values["FOUND"] == "TRUE"
    assert found.lines[0].endswith(f" for {names}")
    options = found.values["OPTIONS"]
    codes = re.findall(r"arch=compute_(\d+),code=sm_(\d+)", options)
    assert [f"{code}" for _, code in codes] == names.removesuffix("+ptx").split()
    assert all(compute == code for compute, code in codes)
    if given == "all":
        assert {"80", "90"} <= {code for _, code in codes}
        newest = codes[-1][0]
        assert names.endswith(f"{newest}+ptx")
        assert f"arch=compute_{newest},code=compute_{newest}" in options
    else:
        assert names == ("90" if given == "90" else "80 90")
        assert "code=compute" not in options


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize(("given", "has_hopper"), [("80,90", True), ("80,120", False)])
def test_hopper_has_code_of_its_own(tmp_path: Path, given: str, has_hopper: bool) -> None:
    """Its own instructions are compiled for sm_90a alone, and only where 90 is built."""
    found = Configured(tmp_path, "CXX", {}, MAMBA_CUDA="ON", MAMBA_CUDA_ARCHITECTURES=given)
    codes = re.findall(r"code=(\w+)", found.values["HOPPER"])
    assert codes == (["sm_90a"] if has_hopper else [])
    assert "90a" not in found.values["OPTIONS"]
