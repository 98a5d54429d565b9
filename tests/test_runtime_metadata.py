"""Reading an exported folder's metadata, and refusing folders that are not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mamba_export import contract
from mamba_export.errors import SessionError
from mamba_export.folder.metadata import read_metadata


def content() -> dict[str, Any]:
    def tensor(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "shape": list(shape)}

    conv, scan = ("batch", 8, 3), ("batch", 8, 16)
    (past_conv, past_scan), (conv_out, scan_out) = contract.state_names(1)
    return {
        "format": contract.METADATA_FORMAT,
        "contract_version": contract.CONTRACT_VERSION,
        "dtype": "fp16",
        "opset": 20,
        "last_logits_only": True,
        "vocab_size": 256,
        "eos_token_id": None,
        "inputs": [
            tensor("input_ids", "int64", "batch", "length"),
            tensor(past_conv, "fp16", *conv),
            tensor(past_scan, "fp32", *scan),
        ],
        "outputs": [
            tensor("logits", "fp16", "batch", 1, 256),
            tensor(conv_out, "fp16", *conv),
            tensor(scan_out, "fp32", *scan),
        ],
        "states": [
            {"past": past_conv, "present": conv_out},
            {"past": past_scan, "present": scan_out},
        ],
        "model": {"d_model": 4},
        "source": {"kind": "module", "name": "MambaLM", "path": None},
        "versions": {"torch": "2.13.0"},
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
        ("dtype", "int4"), ("inputs", []), ("inputs", [{}]), ("states", []), ("states", [{"past": "x"}]),
        ("vocab_size", "many"), ("outputs", None), ("source", 3),
    ],
)  # fmt: skip
def test_a_wrong_entry(key: str, value: object, tmp_path: Path) -> None:
    assert "is damaged" in error(write(tmp_path, content() | {key: value}))


@pytest.mark.parametrize("key", ["format", "contract_version"])
def test_another_version(key: str, tmp_path: Path) -> None:
    message = error(write(tmp_path, content() | {key: 99}))
    assert f"{key} 99" in message
    assert "export the model again" in message
