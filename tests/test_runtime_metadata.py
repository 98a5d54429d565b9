"""Reading an exported folder's metadata, and refusing folders that are not ours."""

from __future__ import annotations

import dataclasses
import json
import os
import re
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
    assert re.search("is (damaged|not valid JSON)", error(tmp_path))


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


def changed(path: str, value: object) -> dict[str, Any]:
    """The content with one entry changed: a path such as ``states.0.start``."""
    whole = content()
    *parents, last = path.split(".")
    inner: Any = whole
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[last if isinstance(inner, dict) else int(last)] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tokens.vocab_size", 257, "tokens.vocab_size is 257, and logits is (batch, 1, 256)"),
        ("tokens.vocab_size", 2**31, "tokens.vocab_size is 2147483648, expected an integer from 1"),
        ("tokens.vocab_size", 256.0, "tokens.vocab_size is 256.0, expected an integer"),
        ("tokens.last_logits_only", 1, "tokens.last_logits_only is 1, expected true or false"),
        ("outputs.0.shape", ["batch", 256], "tokens.vocab_size is 256, and logits is (batch, 256)"),
        ("inputs.0.shape", ["batch"], "tokens are of shape (batch, length), and input_ids is (batch)"),
        ("inputs.0.dtype", "fp32", "tokens are of shape (batch, length), and input_ids is "),
        ("inputs.0.shape.0", -1, "inputs[0].shape is [-1, 'length'], expected a list"),
        ("inputs.0.shape.0", 10**30, "inputs[0].shape is [1000000000000000000000000000000, "),
        ("states.0.shape.1", "32", "states[0].shape is ['batch', '32', "),
        ("inputs.0.shape.0", "", "inputs[0].shape is ['', 'length'], expected a list"),
        ("inputs.0.name", None, "inputs[0].name is None, expected a text"),
        ("states.1.dtype", "fp33", "states[1].dtype is 'fp33', expected one of fp32, "),
        ("states.1.shape", [2] * 33, "states[1].shape is a list of 33, expected a list of 0 to 32"),
        ("states.0.start", "0", "states[0].start is '0', expected a finite number"),
        ("states.0.grows", 9, "states[0].grows is 9: no axis that can grow of ['batch', 8, 3]"),
        ("opset", 10**39, "opset is an integer of some 40 digits, expected an integer"),
        ("source.path", ["/"], "source.path is ['/'], expected a text, or null"),
        ("versions.torch", 2, "versions is {'torch': 2}, expected an object, each field a text"),
        ("model", [], "model is [], expected an object, or null"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(path: str, value: object, message: str, tmp_path: Path) -> None:
    found = error(write(tmp_path, changed(path, value)))
    assert f"{tmp_path / contract.METADATA_FILE} is damaged ({message}" in found
    assert found.endswith("): export the model again")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"start": Infinity', "states[0].start is inf, expected a finite number"),
        ('"start": 1e999', "states[0].start is inf, expected a finite number"),
        ('"start": NaN', "states[0].start is nan, expected a finite number"),
        (f'"start": 1{"0" * 400}', "states[0].start is an integer of 401 digits"),
        (f'"start": {"[" * 9999}{"]" * 9999}', "mamba_export.json is nested too deeply"),
    ],
)
def test_numbers_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, content())
    path = tmp_path / contract.METADATA_FILE
    path.write_text(path.read_text().replace('"start": 0.0', text, 1))
    assert f"{message}: export the model again" in error(tmp_path)


def test_a_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path, content())
    path = tmp_path / contract.METADATA_FILE
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_metadata(tmp_path).vocab_size == 256


def test_no_file_where_the_metadata_should_be(tmp_path: Path) -> None:
    write(tmp_path, content())
    path = tmp_path / contract.METADATA_FILE
    path.unlink()
    path.mkdir()
    assert error(tmp_path) == f"{path} is a folder, expected a file"
    path.rmdir()
    os.mkfifo(path)
    assert error(tmp_path) == f"{path} is a FIFO, expected a file"
