"""docs/your-own-model.md: its files, written and run as a reader would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.names import TENSORRT_RTX
from mamba_export.libraries import TRT_PLUGIN

PAGE = Path(__file__).parent.parent / "docs" / "your-own-model.md"
FILES = {
    name: code
    for name, code in re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S
    )
}
MOST_LINES = 30


def run(name: str, folder: Path) -> None:
    (folder / name).write_text(FILES[name], encoding="utf-8")
    found = subprocess.run(
        [sys.executable, name], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "Warning" not in found.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "classifier.py").write_text(FILES["classifier.py"], encoding="utf-8")
    run("to_onnx.py", folder)
    return folder


def test_it_is_under_thirty_lines() -> None:
    assert len((FILES["to_onnx.py"] + FILES["to_tensorrt.py"]).splitlines()) < MOST_LINES


def test_to_onnx_runtime(exported: Path) -> None:
    assert (exported / "out" / "model.onnx").is_file()


@pytest.mark.skipif(
    not libraries.is_installed(TENSORRT_RTX), reason="tensorrt-rtx is not installed"
)
@pytest.mark.skipif(
    TRT_PLUGIN.path() is None,
    reason="the TensorRT plugin was not built (no CUDA toolkit or headers)",
)
def test_to_tensorrt(exported: Path) -> None:
    run("to_tensorrt.py", exported)


def test_a_module_that_calls_our_operators(tmp_path: Path) -> None:
    run("own_operators.py", tmp_path)
