"""The metadata file of an exported folder, read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mamba_export import contract
from mamba_export.errors import SessionError

_DTYPES = (*contract.DTYPES, "int64")


@dataclass(frozen=True)
class TensorInfo:
    """A graph input or output.

    Args:
        name: its name in the graph.
        dtype: "fp32", "fp16", "bf16" or "int64".
        shape: sizes, with "batch" and "length" where the size is dynamic.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def resolve(self, batch: int, length: int = 1) -> tuple[int, ...]:
        """The shape with its dynamic sizes filled in."""
        sizes = {"batch": batch, "length": length}
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True)
class StateInfo:
    """One state tensor: the input that takes it, the output that returns it, and their common type."""

    past: TensorInfo
    present: TensorInfo


@dataclass(frozen=True)
class Metadata:
    """What ``mamba_export.json`` says of an exported folder.

    Args:
        folder: where it lies.
        dtype: "fp32", "fp16" or "bf16": matrices, activations and logits.
        opset: version of standard ONNX.
        last_logits_only: the graph returns logits (batch, 1, vocab_size).
        vocab_size: token ids are in [0, vocab_size); 0 for a model without tokens.
        eos_token_id: token that ends a text, or None.
        sequence: the first input, ``input_ids`` or ``inputs_embeds``.
        output: the first output, ``logits`` or ``last_hidden_state``.
        states: state tensors, in graph order.
        model: the model's configuration.
        source: what it was exported from.
        versions: versions of the packages that wrote it.
    """

    folder: Path
    dtype: str
    opset: int
    last_logits_only: bool
    vocab_size: int
    eos_token_id: int | None
    sequence: TensorInfo
    output: TensorInfo
    states: tuple[StateInfo, ...]
    model: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str]

    @property
    def takes_tokens(self) -> bool:
        """Whether the model is a language model: its first input is ``input_ids``."""
        return self.sequence.name == contract.INPUT_IDS

    @property
    def source_path(self) -> str | None:
        """Folder of the checkpoint that it was exported from; None where it was a module in memory."""
        return self.source["path"]

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.folder / contract.MODEL_FILE


def read_metadata(folder: str | Path) -> Metadata:
    """Read ``mamba_export.json`` of an exported folder.

    Raises:
        SessionError: the folder is missing, was not written by mamba-export, or holds a metadata file
            that is damaged or of a format that this version does not read.
    """
    folder = Path(folder).expanduser()
    if not folder.exists():
        raise SessionError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise SessionError(
            f"{folder} is a file: give the folder that `mamba-export export` wrote, which holds "
            f"{contract.MODEL_FILE} and {contract.METADATA_FILE}"
        )
    path = folder / contract.METADATA_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SessionError(
            f"{folder} was not written by mamba-export: it has no {contract.METADATA_FILE}"
        ) from None
    except OSError as error:
        raise SessionError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise SessionError(f"{path} is damaged (not JSON): export the model again") from error

    _check_version(path, content, "format", contract.METADATA_FORMAT)
    _check_version(path, content, "contract_version", contract.CONTRACT_VERSION)
    try:
        metadata = _parse(folder, content)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SessionError(f"{path} is damaged ({error}): export the model again") from error
    if not metadata.model_path.is_file():
        raise SessionError(f"{folder} has no {contract.MODEL_FILE}: export the model again")
    return metadata


def _check_version(path: Path, content: Any, key: str, known: int) -> None:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, int):
        raise SessionError(f"{path} is damaged (no {key}): export the model again")
    if found != known:
        raise SessionError(
            f"{path} has {key} {found}, this version of mamba-export reads {known}: "
            "export the model again with this version"
        )


def _parse(folder: Path, content: dict[str, Any]) -> Metadata:
    inputs = {tensor.name: tensor for tensor in map(_tensor, content["inputs"])}
    outputs = {tensor.name: tensor for tensor in map(_tensor, content["outputs"])}
    states = tuple(
        StateInfo(inputs[state["past"]], outputs[state["present"]]) for state in content["states"]
    )
    if len(inputs) != len(states) + 1 or len(outputs) != len(states) + 1:
        raise ValueError("inputs, outputs and states do not match")
    eos = content["eos_token_id"]
    return Metadata(
        folder=folder,
        dtype=_one_of(content["dtype"], contract.DTYPES),
        opset=int(content["opset"]),
        last_logits_only=bool(content["last_logits_only"]),
        vocab_size=int(content["vocab_size"]),
        eos_token_id=None if eos is None else int(eos),
        sequence=next(iter(inputs.values())),
        output=next(iter(outputs.values())),
        states=states,
        model=dict(content["model"]),
        source={"path": None, **content["source"]},
        versions=dict(content["versions"]),
    )


def _tensor(content: dict[str, Any]) -> TensorInfo:
    shape = tuple(
        _one_of(size, ("batch", "length")) if isinstance(size, str) else int(size)
        for size in content["shape"]
    )
    return TensorInfo(str(content["name"]), _one_of(content["dtype"], _DTYPES), shape)


def _one_of(value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return value
