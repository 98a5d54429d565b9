"""engine.json: every damaged value is one line that names the file and the field."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mamba_export.backends.tensorrt.description import read_description
from mamba_export.errors import EngineError

TENSOR = {"name": "input_ids", "dtype": "int64", "shape": [-1, -1]}
CONTENT: dict[str, Any] = {
    "format": 1,
    "runtime": "tensorrt",
    "runtime_version": "10.14.1",
    "compute_capability": "9.0",
    "contract_version": 1,
    "plugins": {"SelectiveScan": 2},
    "plugin_library": None,
    "engine_sha256": None,
    "precision": "fp16",
    "byte_tokenizer": True,
    "inputs": [TENSOR],
    "outputs": [{"name": "logits", "dtype": "fp16", "shape": [-1, -1, 256]}],
    "profiles": [{"name": "decode", "batch": [1, 2, 3], "length": [1, 1, 1], "sizes": {"past": [0, 1, 2]}}],
    "states": [["past", "present"]],
    "vocab_size": 256,
    "version_compatible": False,
    "hardware_compatible": False,
    "model": {"graph_sha256": "00", "weights_sample_sha256": None},
    "build": {"seconds": 1.5, "peak_memory_mib": 100, "engine_bytes": 5000000000},
}  # fmt: skip


def error(folder: Path, text: str) -> str:
    path = folder / "engine.json"
    path.write_text(text)
    with pytest.raises(EngineError) as caught:
        read_description(folder)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(f"{path} ")


def test_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(json.dumps(CONTENT))
    assert read_description(tmp_path).to_json() == CONTENT


@pytest.mark.parametrize("field", [name for name in CONTENT if name != "format"])
def test_every_field_is_needed_and_checked(field: str, tmp_path: Path) -> None:
    rest = {name: value for name, value in CONTENT.items() if name != field}
    assert error(tmp_path, json.dumps(rest)).startswith(f"is damaged ({field} is missing)")
    for value in (-1, 2**31, [1], "\x1b[31m", {"a": {"b": 1}}):
        if field in ("plugin_library", "engine_sha256") and isinstance(value, str):
            continue  # texts like any other: nothing is opened by that name, and no file has that sum
        message = error(tmp_path, json.dumps({**CONTENT, field: value}))
        assert message.startswith(f"is damaged ({field}"), message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profiles": [{"name": "x", "batch": [3, 2, 1], "length": [1, 1, 1]}]}, "profiles[0].batch is "),
        ({"profiles": [{"name": "x", "batch": [1, 2], "length": [1, 1, 1]}]}, "profiles[0].batch is "),
        ({"profiles": [{"name": "x", "batch": [0, 1, 1], "length": [1, 1, 1]}]}, "profiles[0].batch is "),
        ({"inputs": [{**TENSOR, "shape": [-2]}]}, "inputs[0].shape is "),
        ({"inputs": [{**TENSOR, "dtype": "int4"}]}, "inputs[0].dtype is 'int4', expected one of fp32"),
        ({"states": [["a", "b", "c"]]}, "states is "),
        ({"runtime_version": "10.x"}, "runtime_version is '10.x', expected numbers with dots"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    found = error(tmp_path, json.dumps({**CONTENT, **changes}))
    assert found.startswith(f"is damaged ({message}")
    assert found.endswith("): build the engine again")


def test_any_damage_is_one_line_or_none(tmp_path: Path) -> None:
    path, whole = tmp_path / "engine.json", json.dumps(CONTENT).encode()
    refusals = []
    for seed in range(500):
        rng, changed = random.Random(seed), bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
        path.write_bytes(bytes(changed) if rng.randrange(4) else whole[: rng.randrange(len(whole))])
        try:
            read_description(tmp_path)
        except EngineError as found:
            refusals.append(str(found))
    assert len(refusals) > 250
    assert not [message for message in refusals if "\n" in message]
