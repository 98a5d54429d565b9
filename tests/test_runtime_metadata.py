"""Reading an exported folder's metadata, and refusing folders that are not ours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mamba_export import contract
from mamba_export.contract.program import Program, State, Value
from mamba_export.errors import SessionError
from mamba_export.folder.metadata import read_metadata, write_metadata

CONV, SCAN = ("batch", 8, 3), ("batch", 8, 16)
(PAST_CONV, PAST_SCAN), (CONV_OUT, SCAN_OUT) = contract.state_names(1)


def tensor(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def state(past: str, present: str, dtype: str, *shape: int | str) -> dict[str, Any]:
    names = {"name": past, "past": past, "present": present}
    return {**names, "dtype": dtype, "shape": list(shape), "start": 0.0, "grows": None}


def content() -> dict[str, Any]:
    return {
        "format": contract.METADATA_FORMAT,
        "contract_version": contract.CONTRACT_VERSION,
        "dtype": "fp16",
        "opset": 20,
        "inputs": [tensor("input_ids", "int64", "batch", "length")],
        "outputs": [tensor("logits", "fp16", "batch", 1, 256)],
        "states": [
            state(PAST_CONV, CONV_OUT, "fp16", *CONV),
            state(PAST_SCAN, SCAN_OUT, "fp32", *SCAN),
        ],
        "tokens": {"vocab_size": 256, "eos_token_id": None, "last_logits_only": True},
        "model": {"d_model": 4},
        "source": {"kind": "module", "name": "MambaLM", "path": None},
        "versions": {"torch": "2.13.0"},
    }


def content_of_format_1() -> dict[str, Any]:
    """As written before programs: states' tensors among inputs and outputs, tokens at the top level."""
    new = content()
    tokens = new.pop("tokens")
    return {
        **new,
        **tokens,
        "format": 1,
        "inputs": [
            *new["inputs"],
            tensor(PAST_CONV, "fp16", *CONV),
            tensor(PAST_SCAN, "fp32", *SCAN),
        ],
        "outputs": [
            *new["outputs"],
            tensor(CONV_OUT, "fp16", *CONV),
            tensor(SCAN_OUT, "fp32", *SCAN),
        ],
        "states": [
            {"past": PAST_CONV, "present": CONV_OUT},
            {"past": PAST_SCAN, "present": SCAN_OUT},
        ],
    }


def write(folder: Path, content: Any) -> Path:
    (folder / contract.METADATA_FILE).write_text(json.dumps(content))
    (folder / contract.MODEL_FILE).touch()
    return folder


def test_it_says_what_the_file_says(tmp_path: Path) -> None:
    metadata = read_metadata(write(tmp_path, content()))
    assert (metadata.dtype, metadata.vocab_size, metadata.eos_token_id) == ("fp16", 256, None)
    assert metadata.takes_tokens
    assert metadata.last_logits_only
    assert metadata.model_path == tmp_path / "model.onnx"
    assert metadata.outputs[0].resolve({"batch": 3, "length": 7}) == (3, 1, 256)
    assert metadata.inputs[0].resolve({"batch": 3, "length": 7}) == (3, 7)
    assert [s.past.dtype for s in metadata.states] == ["fp16", "fp32"]
    assert metadata.states[1].present.name == "present.0.recurrent_state"
    assert metadata.source_path is None


def test_a_folder_of_format_1_says_the_same(tmp_path: Path) -> None:
    for name, one in (("old", content_of_format_1()), ("new", content())):
        (tmp_path / name).mkdir()
        write(tmp_path / name, one)
    old, new = (read_metadata(tmp_path / name) for name in ("old", "new"))
    assert dataclasses.replace(old, folder=new.folder) == new


def test_a_damaged_file_of_format_1(tmp_path: Path) -> None:
    for key in ("vocab_size", "inputs", "states"):
        changed = content_of_format_1()
        del changed[key]
        assert "is damaged" in error(write(tmp_path, changed))


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    """A program with every kind of value, axes of any name, and a state that grows."""
    program = Program(
        module=None,
        inputs=(Value("image", "uint8", ("batch", 3, "height", "width")), Value("n", "bool", (1,))),
        outputs=(Value("y", "bf16", ("batch", "height * width")), Value("z", "int32", ())),
        states=(
            State.of("keys", "k", "k_out", "fp16", ("batch", 2, "past", 4), -1.5, grows=2),
            State.of("scan", "h", "h_out", "fp32", ("batch", 8)),
        ),
    )
    (tmp_path / contract.MODEL_FILE).touch()
    write_metadata(tmp_path, program, dtype="bf16", opset=20, model=None, source={}, versions={})
    metadata = read_metadata(tmp_path)
    assert (metadata.inputs, metadata.outputs) == (program.inputs, program.outputs)
    assert metadata.states == program.states
    assert metadata.states[0].present.shape == ("batch", 2, "past_after", 4)
    assert (metadata.tokens, metadata.model, metadata.vocab_size) == (None, None, 0)
    assert metadata.grows
    assert not metadata.takes_tokens


def error(path: Path) -> str:
    with pytest.raises(SessionError) as caught:
        read_metadata(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_folder(tmp_path: Path) -> None:
    assert error(tmp_path / "nowhere").endswith("nowhere: no such folder")


def test_a_file_instead_of_its_folder(tmp_path: Path) -> None:
    write(tmp_path, content())
    assert "is a file: give the folder" in error(tmp_path / "model.onnx")


def test_an_onnx_file_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    assert "was not written by mamba-export" in error(tmp_path)


def test_metadata_without_the_graph(tmp_path: Path) -> None:
    write(tmp_path, content())
    (tmp_path / "model.onnx").unlink()
    assert "has no model.onnx" in error(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"{}", b'{"format": "1"}'])
def test_a_damaged_file(raw: bytes, tmp_path: Path) -> None:
    write(tmp_path, content())
    (tmp_path / contract.METADATA_FILE).write_bytes(raw)
    assert "is damaged" in error(tmp_path)


@pytest.mark.parametrize(
    "key", [key for key in content() if "version" not in key and key != "format"]
)
def test_a_missing_entry(key: str, tmp_path: Path) -> None:
    changed = content()
    del changed[key]
    message = error(write(tmp_path, changed))
    assert "is damaged" in message
    assert key in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "int4"), ("inputs", []), ("inputs", [{}]), ("states", None), ("states", [{"past": "x"}]),
        ("states", [state("x", "y", "fp32", "batch", 8) | {"grows": 1}]), ("tokens", {"vocab_size": 3}),
        ("tokens", "many"), ("outputs", None), ("source", 3),
    ],
)  # fmt: skip
def test_a_wrong_entry(key: str, value: object, tmp_path: Path) -> None:
    assert "is damaged" in error(write(tmp_path, content() | {key: value}))


@pytest.mark.parametrize("key", ["format", "contract_version"])
def test_another_version(key: str, tmp_path: Path) -> None:
    message = error(write(tmp_path, content() | {key: 99}))
    assert f"{key} 99" in message
    assert "export the model again" in message
