"""mamba_run and what it reads, for its tests: the program, and folders with an engine that is none inside."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from mamba_export.backends.tensorrt import names
from mamba_export.libraries import MAMBA_RUN, installed

RUN_VARIABLE = "MAMBA_RUN"
"""Environment variable: path of the program instead of the installed one."""


def program() -> Path | None:
    setting = os.environ.get(RUN_VARIABLE)
    return Path(setting) if setting else installed(MAMBA_RUN)


ABSENT = "mamba_run is not built (nvcc and TensorRT's headers build it)"
NO_TENSORRT = "/nowhere/libnvinfer.so.10"
DESCRIPTION: dict[str, Any] = {
    "runtime": "tensorrt",
    "runtime_version": "10.14.1",
    "compute_capability": "8.7",
    "contract_version": 1,
    "plugins": {"SelectiveScan": 1, "CausalConv1d": 1},
    "plugin_library": "plugin.so",
    "precision": "fp16",
    "byte_tokenizer": True,
    "inputs": [
        {"name": "input_ids", "dtype": "int64", "shape": [-1, -1]},
        {"name": "past_key_values.0.conv_state", "dtype": "fp16", "shape": [-1, 8, 3]},
        {"name": "past_key_values.0.recurrent_state", "dtype": "fp32", "shape": [-1, 8, 16]},
    ],
    "outputs": [
        {"name": "logits", "dtype": "fp16", "shape": [-1, -1, 256]},
        {"name": "present.0.conv_state", "dtype": "fp16", "shape": [-1, 8, 3]},
        {"name": "present.0.recurrent_state", "dtype": "fp32", "shape": [-1, 8, 16]},
    ],
    "profiles": [
        {"name": "prefill", "batch": [1, 1, 4], "length": [1, 128, 512]},
        {"name": "decode", "batch": [1, 1, 4], "length": [1, 1, 1]},
    ],
    "states": [
        ["past_key_values.0.conv_state", "present.0.conv_state"],
        ["past_key_values.0.recurrent_state", "present.0.recurrent_state"],
    ],
    "vocab_size": 256,
    "version_compatible": False,
    "hardware_compatible": False,
    "model": {"graph_sha256": None, "weights_sample_sha256": None},
    "build": {},
}


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The program run with these arguments; ``options`` are those of subprocess.run."""
    path = program()
    assert path
    return subprocess.run(
        [str(path), *map(str, arguments)],
        **{"capture_output": True, "text": True, "timeout": 60, "check": False, **options},
    )


def refused(*arguments: str | Path, **options: Any) -> str:
    """The one line that it says where something is wrong."""
    found = run(*arguments, **options)
    assert found.returncode == 2, found
    assert found.stdout == ""
    assert found.stderr.startswith("mamba_run: ")
    assert found.stderr.count("\n") == 1
    return found.stderr[len("mamba_run: ") : -1]


def engine_bytes(
    tag: bytes = b"ftrt", version: tuple[int, ...] = (10, 14, 1, 48), count: int = 100
) -> bytes:
    """What the checks see of an engine: its tag, its runtime's version, and so many bytes in all."""
    return (tag + bytes(20) + bytes(version)).ljust(count, b"\x55")


def write_folder(folder: Path, engine: bytes | None = None, **changed: Any) -> Path:
    """Writes a folder: engine.json with changed entries, and an engine and a plugin library that are none."""
    engine = engine_bytes() if engine is None else engine
    digest = hashlib.sha256(engine).hexdigest()
    content = {"format": 1, **DESCRIPTION, "engine_sha256": digest, **changed}
    (folder / names.DESCRIPTION_FILE).write_text(json.dumps(content))
    (folder / names.ENGINE_FILE).write_bytes(engine)
    (folder / "plugin.so").write_bytes(b"not a library")
    return folder


def refused_prompt(folder: Path, *arguments: str | Path, **options: Any) -> str:
    """What it says of a prompt to an engine, on a machine without TensorRT."""
    return refused(
        "--engine", folder, "--prompt", "In", "--tensorrt", NO_TENSORRT, *arguments, **options
    )
