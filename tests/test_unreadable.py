"""Hard paths: files and folders that may not be read, what is no file, "~", and names that are not UTF-8."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mamba_export
from mamba_export.backends.onnxruntime import OrtSession
from mamba_export.backends.tensorrt import BuildOptions, bundle
from mamba_export.errors import CheckpointError, EngineError, MambaExportError, SessionError
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.folder.metadata import read_metadata
from mamba_export.folder.tokenizer import load_tokenizer
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import MambaConfig, MambaLM, checkpoints
from mamba_export.verify import verify

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in three formats, and what was exported from it."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o755)
    torch.manual_seed(0)
    checkpoints.save(MambaLM(MambaConfig(8, 2, 256, d_state=2)), home / "safetensors")
    write_byte_tokenizer(home / "safetensors")
    (home / "safetensors" / "generation_config.json").write_text("{}")
    for name in ("pickle", "sharded"):
        shutil.copytree(home / "safetensors", home / name)
    whole = home / "pickle" / "model.safetensors"
    torch.save(load_file(whole), home / "pickle" / "pytorch_model.bin")
    whole.unlink()
    (home / "sharded" / "model.safetensors").rename(home / "sharded" / "model-1.safetensors")
    index = home / "sharded" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    mamba_export.export(home / "safetensors", output=home / "out")
    return home


# ---- permissions -------------------------------------------------------------------------------

AS_ANOTHER_USER = """
import os, sys
from pathlib import Path
from mamba_export.backends.onnxruntime import OrtSession
from mamba_export.backends.tensorrt.description import is_byte_tokenizer
from mamba_export.errors import MambaExportError
from mamba_export.folder.tokenizer import load_tokenizer
from mamba_export.models import checkpoints

def attempt(closed, call):
    mode = closed.stat().st_mode
    closed.chmod(0)
    if os.getuid() == 0:  # whom nothing is denied
        os.seteuid(65534)
    try:
        call()
        print(closed, "was not needed")
    except MambaExportError as error:
        print(type(error).__name__, error)
    finally:
        os.seteuid(os.getuid())
        closed.chmod(mode)

for folder in map(Path, ("safetensors", "pickle", "sharded")):
    for closed in (*sorted(folder.iterdir()), folder):
        attempt(closed, lambda: checkpoints.load(folder))
attempt(Path("safetensors"), lambda: checkpoints.locate_tokenizer("safetensors"))
out = Path("out")
for name in ("mamba_export.json", "model.onnx", "model.onnx.data"):
    attempt(out / name, lambda: OrtSession(out))
attempt(out, lambda: OrtSession(out))
attempt(out / "tokenizer.json", lambda: load_tokenizer(out))
attempt(out / "tokenizer.json", lambda: is_byte_tokenizer(out))
"""


def test_permission_denied(home: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER],
        capture_output=True, text=True, check=False, cwd=home, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    expected = [
        f"CheckpointError {folder}/{path.name} cannot be read (Permission denied)"
        for folder in ("safetensors", "pickle", "sharded")
        for path in (*sorted((home / folder).iterdir()), home / folder / "config.json")
    ]
    expected.append("CheckpointError safetensors/tokenizer.json cannot be read (Permission denied)")
    expected += [
        f"SessionError out/{name} cannot be read (Permission denied)"
        for name in (
            "mamba_export.json", "model.onnx", "model.onnx.data", "mamba_export.json", "tokenizer.json",
        )
    ]  # fmt: skip
    expected.append("EngineError out/tokenizer.json cannot be read (Permission denied)")
    assert result.stdout.splitlines() == expected


# ---- what is no file ---------------------------------------------------------------------------

REPLACED: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (os.mkfifo, "is a FIFO, expected a file"),
    "folder": (Path.mkdir, "is a folder, expected a file"),
    "dangling link": (lambda path: path.symlink_to("absent"), "is a link to a file that is not"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a file"),
}


@pytest.mark.parametrize(("replace", "message"), REPLACED.values(), ids=REPLACED.keys())
def test_what_is_no_file(
    replace: Callable[[Path], object], message: str, home: Path, tmp_path: Path
) -> None:
    def refused(path: Path, error: type[MambaExportError], call: Callable[[Path], object]) -> None:
        folder = tmp_path / path.parent.name
        shutil.copytree(path.parent, folder)
        (folder / path.name).unlink()
        replace(folder / path.name)
        with pytest.raises(error) as caught:
            call(folder)
        assert str(caught.value).startswith(f"{folder / path.name} {message}")
        shutil.rmtree(folder)

    for folder in ("safetensors", "pickle", "sharded"):
        for path in sorted((home / folder).iterdir()):
            refused(path, CheckpointError, checkpoints.load)
    for name in ("mamba_export.json", "model.onnx", "model.onnx.data"):
        refused(home / "out" / name, SessionError, OrtSession)
    refused(home / "out" / "tokenizer.json", SessionError, load_tokenizer)
    refused(home / "out" / "tokenizer.json", EngineError, lambda f: bundle(f, tmp_path / "bundle"))
    assert not any(tmp_path.iterdir()), "nothing is written"


# ---- names -------------------------------------------------------------------------------------


def test_the_home_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell expands "~"; a script does not."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    try:
        exported = mamba_export.export("~/pickle", output="~/again", tokenizer="~/safetensors")
        assert exported == home / "again"
        assert (home / "again" / "tokenizer.json").is_file()
        assert read_metadata("~/again").folder == home / "again"
        assert load_tokenizer("~/again").encode("a") == [97]
        assert OrtSession("~/again").metadata.vocab_size == 256
        bundle("~/again", "~/bundle", BuildOptions(plugin=False))
        assert (home / "bundle" / "engine.json").is_file()
        assert verify("~/again", model=Path("~/safetensors"), text="abc", quick=True).passed
        checkpoints.save(checkpoints.load("~/sharded").model, "~/saved")
        assert (home / "saved" / "config.json").is_file()
        (home / "lib.so").touch()
        monkeypatch.setenv(CUSTOM_OPS.variable, "~/lib.so")
        assert CUSTOM_OPS.path() == (home / "lib.so").resolve()
        assert not any(tmp_path.iterdir()), "nothing lies in a folder called ~"
    finally:
        for name in ("again", "bundle", "saved"):
            shutil.rmtree(home / name, ignore_errors=True)


def test_the_home_of_nobody() -> None:
    with pytest.raises(SessionError, match=r"^~no-such-user/out: no such folder"):
        read_metadata("~no-such-user/out")
    with pytest.raises(CheckpointError, match=r"^~no-such-user/model: no such folder"):
        checkpoints.load("~no-such-user/model")


@pytest.mark.parametrize("saved", ["safetensors", "pickle"])
def test_names_that_are_not_utf8(saved: str, home: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xff")
    shutil.copytree(home / saved, tmp_path / name)
    out = mamba_export.export(tmp_path / name, output=tmp_path / f"out {name}")
    tokens = np.array([[1, 2, 3]])
    expected = OrtSession(home / "out").run(tokens)[0]
    assert np.array_equal(OrtSession(out).run(tokens)[0], expected)
    assert read_metadata(out).source_path == str((tmp_path / name).resolve())
    assert verify(out, text="abc", quick=True).passed


def test_names_that_are_too_long(home: Path) -> None:
    for name in ("x" * 256, "y/" * 3000):
        with pytest.raises(SessionError, match=r"cannot be read \(File name too long\)"):
            read_metadata(home / name)
        with pytest.raises(CheckpointError, match=r"cannot be read \(File name too long\)"):
            checkpoints.load(home / name)
