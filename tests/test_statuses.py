"""What ONNX Runtime is told of a failure: the code and the text, by the kernels' status or the exception."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[1] / "plugins"
COMPILER = shutil.which("c++") or shutil.which("g++")

PROGRAM = """
#include <cstdio>
#include <new>
#include "library.h"

struct OrtStatus { int code; std::string text; };

static OrtStatus* create_status(OrtErrorCode code, const char* text) {
  return new OrtStatus{code, text};
}
extern "C" const char* mamba_last_error() { return "scan: what happened"; }

int main() {
  using namespace mamba_ort;
  void* const table[] = {reinterpret_cast<void*>(&create_status)};  // CreateStatus is the first member
  const OrtFunctions api(reinterpret_cast<const OrtApi*>(table));
  const auto show = [&](const char* what, auto body) {
    const OrtStatus* status = guarded(api, "Op", body);
    std::printf("%s: %d %s\\n", what, status ? status->code : 0, status ? status->text.c_str() : "");
  };
  show("ok", [] { check(MAMBA_OK); });
  show("invalid", [] { check(MAMBA_INVALID); });
  show("no cuda", [] { check(MAMBA_NO_CUDA); });
  show("cuda", [] { check(MAMBA_CUDA_ERROR); });
  show("memory", [] { check(MAMBA_OUT_OF_MEMORY); });
  show("internal", [] { check(MAMBA_INTERNAL); });
  show("refusal", [] { throw Refusal("u has no shape"); });
  show("bad_alloc", [] { throw std::bad_alloc(); });
  show("logic", [] { throw std::logic_error("a slip"); });
  show("number", [] { throw 1; });
  show("runtime", [] { throw RuntimeError{new OrtStatus{9, "its own"}}; });
}
"""

FAIL, INVALID_ARGUMENT, RUNTIME_EXCEPTION = 1, 2, 6  # OrtErrorCode
EXPECTED = {
    "ok": (0, ""),
    "invalid": (INVALID_ARGUMENT, "mamba_export Op: scan: what happened"),
    # Not EP_FAIL, 11: Python's sessions then run again on the CPU, in silence.
    "no cuda": (FAIL, "mamba_export Op: scan: what happened"),
    "cuda": (FAIL, "mamba_export Op: scan: what happened"),
    "memory": (FAIL, "mamba_export Op: scan: what happened"),
    "internal": (RUNTIME_EXCEPTION, "mamba_export Op: an internal error: scan: what happened"),
    "refusal": (INVALID_ARGUMENT, "mamba_export Op: u has no shape"),
    "bad_alloc": (FAIL, "mamba_export Op: failed to allocate memory"),
    "logic": (RUNTIME_EXCEPTION, "mamba_export Op: an internal error: a slip"),
    "number": (RUNTIME_EXCEPTION, "mamba_export: an unknown error"),
    "runtime": (9, "its own"),
}


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_each_kind_of_failure_is_told_apart(tmp_path: Path) -> None:
    source, binary = tmp_path / "statuses.cpp", tmp_path / "statuses"
    source.write_text(PROGRAM)
    includes = [f"-I{PLUGINS / name}" for name in ("kernels", "contract", "onnxruntime")]
    command = [str(COMPILER), "-std=c++17", "-Wall", "-Werror", *includes, str(source)]
    # Without -O1 the kernels that the operators' table names would have to be linked.
    subprocess.run([*command, "-O1", "-o", str(binary)], check=True)
    lines = subprocess.run([binary], check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines == [f"{name}: {code} {text}" for name, (code, text) in EXPECTED.items()]
