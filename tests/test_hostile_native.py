"""Hostile cases for the C++ of the operators, under AddressSanitizer and UndefinedBehaviorSanitizer.

The hostile programs of ``tests/cpp`` run a seeded loop. For more of it than a test run does::

    MAMBA_HOSTILE_CASES=200000 pytest tests/test_hostile_native.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TENSORRT_HEADERS = ROOT / "build" / "tensorrt-headers"
CASES = int(os.environ.get("MAMBA_HOSTILE_CASES", "2000"))

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))),
    reason="needs CMake and a C++ compiler",
)


def cuda_headers() -> Path | None:
    """The folder of cuda_runtime_api.h: nothing of CUDA is linked."""
    nvcc = shutil.which("nvcc")
    roots = [Path(nvcc).resolve().parents[1]] if nvcc else []
    found = [root / "include" for root in (*roots, Path("/usr/local/cuda"))]
    return next((one for one in found if (one / "cuda_runtime_api.h").is_file()), None)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs: one instruction set, nothing optimised, a tenth of the time."""
    folder = tmp_path_factory.mktemp("hostile")
    options = {
        "MAMBA_HOSTILE_PROGRAMS": "ON",
        "MAMBA_SANITIZE": "address,undefined",
        "MAMBA_INSTRUCTION_SETS": "",
        "CMAKE_CXX_FLAGS_RELEASE": "-O0",
    }
    targets = ["hostile_kernels", "hostile_host_memory", "check_kernels"]
    if headers := cuda_headers():
        options["MAMBA_CUDA_INCLUDE_DIR"] = str(headers)
        targets.append("hostile_step_graph")
    if headers and (TENSORRT_HEADERS / "NvInferRuntime.h").is_file():
        options["TENSORRT_INCLUDE_DIR"] = str(TENSORRT_HEADERS)
        targets.append("hostile_plugins")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    defined = [f"-D{name}={value}" for name, value in options.items()]
    run(["cmake", "-S", ROOT, "-B", folder, *generator, *defined])
    run(["cmake", "--build", folder, "--parallel", "2", "--target", *targets])
    return folder / "tests" / "cpp"


def run(command: list[str | Path]) -> str:
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, errors="replace"
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result.stdout


def test_the_kernels_take_hostile_calls(programs: Path) -> None:
    assert run([programs / "hostile_kernels", str(CASES)]) == f"{CASES} cases\n"


def test_host_memory_lives_as_long_as_somebody_needs_it(programs: Path) -> None:
    assert run([programs / "hostile_host_memory", str(CASES)]) == f"{CASES} cases\n"


def test_captured_steps_copy_from_and_to_memory_of_ours_alone(programs: Path) -> None:
    program = programs / "hostile_step_graph"
    if not program.is_file():
        pytest.skip("needs CUDA's headers: cuda_runtime_api.h")
    assert run([program, str(CASES)]) == f"{CASES} cases\n"


def test_the_kernels_equal_plain_loops(programs: Path) -> None:
    """The program that compute-sanitizer watches on a GPU: its loops are right, and the CPU's kernels clean."""
    last = run([programs / "check_kernels", "cpu"]).splitlines()[-1]
    assert re.fullmatch(r"[1-9]\d+ checks, 0 failures", last)


def test_the_tensorrt_plugins_take_hostile_nodes(programs: Path) -> None:
    program = programs / "hostile_plugins"
    if not program.is_file():
        pytest.skip("needs TensorRT's headers in build/tensorrt-headers, and CUDA's")
    assert run([program, str(CASES)]) == f"{CASES} cases\n"
