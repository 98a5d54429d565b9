"""What the documents tell C++ programs to write: compiled, linked against ONNX Runtime, and run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mamba_export import OrtSession, contract
from mamba_export.export import export
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import MambaLM

ROOT = Path(__file__).parents[1]
HEADERS = ROOT / "build" / "onnxruntime-headers"
PROGRAM = Path(__file__).parent / "cpp" / "run_model.cpp"
COMPILER = shutil.which("c++") or shutil.which("g++")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
TOKENS = [1, 2, 3, 5, 8, 13, 21]


def blocks() -> list[str]:
    """Every C++ block of the documents that registers the library."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = re.findall(r"^```(?:c\+\+|cpp)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for block in found if "RegisterCustomOpsLibrary" in block]


pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (c++ or g++)"),
    pytest.mark.skipif(
        not (HEADERS / "onnxruntime_cxx_api.h").is_file(),
        reason="no headers of ONNX Runtime: `make build/onnxruntime-headers/.unpacked`, with npm, gets them",
    ),
    pytest.mark.skipif(CUSTOM_OPS.path() is None, reason=CUSTOM_OPS.why_absent()),
]


def compiled(folder: Path, lines: str) -> Path:
    """The program with these lines in it, linked against the library inside ONNX Runtime's wheel."""
    program = folder / "run_model"
    (folder / "documented_lines.h").write_text(lines, encoding="utf-8")
    wheel = Path(onnxruntime.__file__).parent / "capi"
    [library] = [path for path in wheel.glob("libonnxruntime.so.*") if not path.is_symlink()]
    (folder / "libonnxruntime.so.1").symlink_to(library)  # its soname, which the wheel lacks
    command = [
        COMPILER,
        "-std=c++17",
        "-isystem",
        HEADERS,
        "-I",
        folder,
        PROGRAM,
        library,
        "-o",
        program,
    ]
    command.append(f"-Wl,-rpath,{folder}")
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return program


def test_the_documents_have_lines_for_c_plus_plus() -> None:
    assert blocks()


@pytest.mark.parametrize("lines", blocks(), ids=range(len(blocks())))
def test_a_program_in_c_plus_plus_runs_our_kernels(
    tmp_path: Path, tiny_model: MambaLM, lines: str
) -> None:
    out = tmp_path / "out"
    export(tiny_model, out)
    program, model = compiled(tmp_path, lines), out / contract.MODEL_FILE
    arguments = [str(model), *map(str, TOKENS)]
    result = subprocess.run(
        [program, str(CUSTOM_OPS.path()), *arguments], capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    session = OrtSession(out, providers=["CPUExecutionProvider"], threads=1)
    logits, _ = session.run([TOKENS])
    found = np.frombuffer(result.stdout, np.float32).reshape(logits.shape)
    np.testing.assert_array_equal(found, logits)  # the same kernels on the same machine
    body, _ = OrtSession(out, providers=["CPUExecutionProvider"], threads=1, native=False).run(
        [TOKENS]
    )
    assert not np.array_equal(found, body), "the function bodies ran, not the kernels"

    absent = subprocess.run(
        [program, str(tmp_path / "absent.so"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert absent.returncode == 1
    assert "absent.so" in absent.stderr
