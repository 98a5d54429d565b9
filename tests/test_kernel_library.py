"""Which implementation runs: the library of compiled kernels found, missing, too old, or of another machine."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import CONV, FP32_BOUND, SCAN, conv_inputs, double, error, scan_inputs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mamba_export import cuda_queries
from mamba_export.contract import layout
from mamba_export.contract.operators import OPERATORS, SELECTIVE_SCAN
from mamba_export.operators import dispatch, kernel_library, native
from mamba_export.operators.checks import Check
from mamba_export.operators.dispatch import BACKEND_VARIABLE, choose_backend
from mamba_export.operators.selective_scan.reference import selective_scan_reference

KERNELS = Path(__file__).parents[1] / "plugins/kernels"
COMPILER = shutil.which("c++") or shutil.which("g++")
installed = pytest.mark.skipif(not native.available(), reason=native.why_absent())
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "native")


uses_native = pytest.mark.usefixtures("_native")


def shared_library(path: Path, *arguments: str | Path) -> Path:
    command = [COMPILER, "-std=c++17", "-shared", "-fPIC", *arguments, "-o", path]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [
        (torch.float32, "native"),
        (torch.float16, "native"),
        (torch.bfloat16, "native"),
        (torch.float64, "cpu"),
    ],
    ids=str,
)
@installed
def test_native_is_the_default_on_a_cpu(dtype: torch.dtype, backend: str) -> None:
    assert choose_backend(torch.zeros(1, dtype=dtype)) == backend


def test_a_forced_implementation_wins_over_what_is_set_and_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "native")
    with dispatch.forced("reference"):
        assert choose_backend(torch.zeros(1)) == "reference"
        with dispatch.forced("cpu"):
            assert choose_backend(torch.zeros(1)) == "cpu"
        assert choose_backend(torch.zeros(1), native_takes=False) == "reference"
    monkeypatch.setenv(BACKEND_VARIABLE, "cpu")
    assert choose_backend(torch.zeros(1)) == "cpu", "the context is over"


def test_without_the_library_the_vectorised_path_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "none")
    inputs = scan_inputs(2, 10)
    truth = selective_scan_reference(*double(inputs))[0]
    assert choose_backend(inputs[0]) == "cpu"
    assert error(SCAN(*inputs)[0], truth) <= FP32_BOUND


def test_forcing_an_absent_library_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "native")
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "none")
    with pytest.raises(ValueError, match="switched off by MAMBA_EXPORT_KERNELS=none"):
        SCAN(*scan_inputs())
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(tmp_path / "nothing.so"))
    with pytest.raises(ValueError, match=r"nothing\.so is not a file"):
        CONV(*conv_inputs())


@uses_native
def test_forcing_native_refuses_float64() -> None:
    with pytest.raises(ValueError, match=r"take fp32, fp16 and bf16; got torch\.float64"):
        SCAN(*scan_inputs(dtype=torch.float64))


def gpu_tensor(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor that says it is on a GPU, without one."""
    with FakeTensorMode():
        return torch.empty(1, device="cuda:0", dtype=dtype)


# What a library answers of a GPU; the texts are those of plugins/kernels/common/cuda/api.cu.
OLDER_GPU = "GPU 0 is sm_61, and the kernels were built for sm_ 75 80+ptx: build mamba_export"
NO_GPU = "no NVIDIA GPU can be used: no CUDA-capable device is detected"
FAKE = """
extern "C" {{
int mamba_kernels_version() {{ return {version}; }}
const char* mamba_cpu_instruction_set() {{ return "fake"; }}
const char* mamba_last_error() {{ return "{error}"; }}
const char* mamba_cuda_architectures() {{ return "75 80+ptx"; }}
int asked = 0;
int mamba_cuda_check_device(int) {{ ++asked; return {status}; }}
{kernels}
unsigned long mamba_selective_scan_cuda_workspace(const void*) {{ return 0; }}
void mamba_thread_pool_parallel_for() {{}}
}}
"""


@pytest.fixture
def fake_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Compiles a library that answers as one on another machine would, and selects it."""

    def compile_and_select(
        *, status: int = 0, error: str = "", version: int = kernel_library.VERSION
    ) -> Path:
        source = tmp_path / "fake.cpp"
        names = [f"{layout.stem(op)}_{device}" for op in OPERATORS for device in op.kernels]
        kernels = "\n".join(f"int {name}(...) {{ return {status}; }}" for name in names)
        source.write_text(FAKE.format(status=status, error=error, version=version, kernels=kernels))
        library = shared_library(tmp_path / native.LIBRARY_FILE, source)
        monkeypatch.setenv(native.LIBRARY_VARIABLE, str(library))
        return library

    return compile_and_select


@needs_compiler
@pytest.mark.parametrize("triton", [True, False], ids=["triton", "no triton"])
def test_order_on_a_gpu(
    fake_library: Callable[..., Path], triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_library()
    monkeypatch.setattr(dispatch, "_triton_present", lambda: triton)
    next_one = "triton" if triton else "cpu"
    for dtype in native.DTYPES:
        tensor = gpu_tensor(dtype)
        assert choose_backend(tensor) == "native"
        assert choose_backend(tensor, native_takes=False) == next_one
    assert choose_backend(gpu_tensor(torch.float64)) == "cpu"
    monkeypatch.setenv(BACKEND_VARIABLE, "native")
    assert choose_backend(gpu_tensor()) == "native"
    assert choose_backend(gpu_tensor(), native_takes=False) == next_one
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "none")
    monkeypatch.delenv(BACKEND_VARIABLE)
    assert choose_backend(gpu_tensor()) == next_one


@needs_compiler
@pytest.mark.parametrize("error", [OLDER_GPU, NO_GPU], ids=["older GPU", "no GPU"])
def test_a_gpu_that_is_not_covered(
    fake_library: Callable[..., Path], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton takes over in silence; who forces the kernels learns why they do not run, in a line."""
    library = fake_library(status=2, error=error)
    monkeypatch.setattr(dispatch, "_triton_present", lambda: True)
    for _ in range(3):
        assert choose_backend(gpu_tensor()) == "triton"
    assert ctypes.c_int.in_dll(native.library().functions, "asked").value == 1, "asked once a GPU"
    monkeypatch.setenv(BACKEND_VARIABLE, "native")
    with pytest.raises(ValueError, match=re.escape(f"MAMBA_EXPORT_BACKEND=native: {error}")):
        choose_backend(gpu_tensor())
    assert native.why_not_on(torch.device("cpu")) == ""
    assert native.why_not_on(torch.device("mps")) == "there are no kernels for mps"
    assert native.library().path == library


@needs_compiler
def test_a_library_without_cuda_says_why(tmp_path: Path) -> None:
    absence = '-DMAMBA_CUDA_ABSENCE="no nvcc was found"'
    sources = KERNELS / "common/errors.cpp", KERNELS / "common/without_cuda.cpp"
    functions = ctypes.CDLL(
        str(shared_library(tmp_path / "lib.so", absence, f"-I{KERNELS}", *sources))
    )
    cuda_queries.declare_cuda_queries(functions)
    assert cuda_queries.cuda_architectures(functions) == ""
    assert cuda_queries.why_not_on_gpu(functions, 0) == (
        "the kernels were built without CUDA (no nvcc was found): with the CUDA toolkit's nvcc on PATH, "
        "install mamba_export from its sources again"
    )


@needs_compiler
def test_a_library_of_another_version_is_one_line(fake_library: Callable[..., Path]) -> None:
    path = fake_library(version=kernel_library.VERSION + 1)
    assert native.why_absent() == (
        f"{path} has version {kernel_library.VERSION + 1} of the kernels' interface, and this "
        f"mamba_export needs {kernel_library.VERSION}: install mamba_export again"
    )
    assert choose_backend(torch.zeros(1)) == "cpu"


@needs_compiler
@uses_native
@pytest.mark.parametrize(
    ("status", "kind"),
    [(1, ValueError), (2, RuntimeError), (3, RuntimeError), (4, RuntimeError), (5, RuntimeError)],
    ids=["invalid", "no CUDA", "CUDA error", "out of memory", "internal"],
)
def test_a_failing_call_raises_the_librarys_line(
    fake_library: Callable[..., Path], status: int, kind: type
) -> None:
    fake_library(status=status, error="selective_scan: CUDA failed: too many resources")
    for op, inputs in ((SCAN, scan_inputs()), (CONV, conv_inputs())):
        with pytest.raises(kind, match=r"^selective_scan: CUDA failed: too many resources$"):
            op(*inputs)


def test_tensors_on_another_device_are_refused() -> None:
    check = Check(SELECTIVE_SCAN)
    for index, name in ((2, "A"), (6, "z"), (8, "initial_state")):
        inputs = scan_inputs()
        inputs[index] = inputs[index].to("meta")
        with pytest.raises(ValueError, match=f"{name} is on meta and the sequence on cpu: move"):
            check(inputs)
