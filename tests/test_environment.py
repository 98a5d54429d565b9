"""Our environment variables with nonsense in them: one line where they count, and never at an import."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mamba_export.backends.onnxruntime import custom_ops
from mamba_export.backends.tensorrt import plugin
from mamba_export.errors import ImplementationError, MambaExportError
from mamba_export.libraries import CUSTOM_OPS, KERNELS, TRT_PLUGIN, CompiledFile
from mamba_export.operators import native
from mamba_export.operators.dispatch import BACKEND_VARIABLE, choose_backend

ROOT = Path(__file__).parent.parent
VALUES: dict[str, Callable[[Path], str]] = {
    "nonsense": lambda folder: "nonsense",
    "very long": lambda folder: "x" * 100_000,
    "long components": lambda folder: "/".join(["y" * 300] * 20),
    "odd bytes": lambda folder: os.fsdecode(b"\xff\xfe"),
    "escapes": lambda folder: "\x1b[31m[/red]\nsecond line",
    "blank": lambda folder: " ",
    "folder": str,
    "text": lambda folder: str(_written(folder / "library.so", b"text")),
    "empty": lambda folder: str(_written(folder / "library.so", b"")),
    "cut": lambda folder: str(_written(folder / "library.so", b"\x7fELF\x02\x01\x01")),
    "foreign": lambda folder: torch._C.__file__,
    "fifo": lambda folder: str(_fifo(folder / "fifo")),
    "device": lambda folder: "/dev/zero",
    "loop": lambda folder: str(_loop(folder / "loop")),
    "unknown user": lambda folder: "~no-such-user/library.so",
}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def _kernels() -> None:
    reason = native.why_absent()
    assert reason
    assert not native.available()
    raise MambaExportError(reason)


def _plugin() -> None:
    path = plugin.TRT_PLUGIN.path()
    assert path is not None
    raise MambaExportError(f"only TensorRT opens {path}")


USES: dict[str, tuple[CompiledFile, Callable[[], object]]] = {
    "kernels": (KERNELS, _kernels),
    "onnxruntime": (CUSTOM_OPS, custom_ops.check_registers),
    "onnxruntime, C functions": (CUSTOM_OPS, custom_ops.cuda_problem),
    "tensorrt": (TRT_PLUGIN, _plugin),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("value", VALUES)
def test_a_library_that_is_none(
    use: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library, open_it = USES[use]
    monkeypatch.setenv(library.variable, VALUES[value](tmp_path))
    with pytest.raises(MambaExportError) as error:
        open_it()
    text = str(error.value)
    assert text
    assert len(text) < 5000
    if value not in {"escapes"}:
        assert "\n" not in text


@pytest.mark.parametrize("value", ["nonsense", "x" * 100_000, "\x1b[2J\n", "AUTO", " ", "triton"])
def test_a_backend_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, value)
    with pytest.raises(ImplementationError, match=BACKEND_VARIABLE) as error:
        choose_backend(torch.zeros(1))
    assert len(str(error.value)) < 200
    assert str(error.value).isprintable()
    assert isinstance(error.value, ValueError), "as it was before it was one of ours"


def test_imports_and_help_read_none_of_them(tmp_path: Path) -> None:
    names = [BACKEND_VARIABLE, KERNELS.variable, CUSTOM_OPS.variable, TRT_PLUGIN.variable]
    names.append("MAMBA_EXPORT_TRACEBACK")
    script = (
        "import mamba_export, mamba_export.operators, mamba_export.nn, mamba_export.models\n"
        "import mamba_export.backends.onnxruntime.session, mamba_export.backends.tensorrt.session\n"
        "from mamba_export.cli import main\n"
        "main(['--help'])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environb, **{name.encode(): b"\xff\x1b[2J" * 10_000 for name in names}},
    )
    assert (result.returncode, result.stderr) == (0, b"")
