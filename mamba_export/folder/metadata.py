"""The metadata file of an exported folder, ``mamba_export.json``: written and read here, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mamba_export import contract
from mamba_export.contract.program import Program, State, Tokens, Value
from mamba_export.errors import SessionError
from mamba_export.files import write_text
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.old_metadata import from_format_1


@dataclass(frozen=True)
class Metadata:
    """What ``mamba_export.json`` says of an exported folder: the program's interface, and where it came from.

    Args:
        folder: where it lies.
        dtype: "fp32", "fp16" or "bf16": matrices, activations and logits.
        opset: version of standard ONNX.
        inputs, outputs: of the program, without its states'.
        states: in graph order.
        tokens: of a language model, else None.
        model: configuration of a model of this package, else None.
        source: what it was exported from.
        versions: versions of the packages that wrote it.
    """

    folder: Path
    dtype: str
    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    states: tuple[State, ...]
    tokens: Tokens | None
    model: dict[str, Any] | None
    source: dict[str, Any]
    versions: dict[str, str]

    @property
    def graph_inputs(self) -> tuple[Value, ...]:
        """What the graph takes, in order: the inputs, then the states' pasts."""
        return (*self.inputs, *(state.past for state in self.states))

    @property
    def graph_outputs(self) -> tuple[Value, ...]:
        """What the graph returns, in order: the outputs, then the states' presents."""
        return (*self.outputs, *(state.present for state in self.states))

    @property
    def grows(self) -> bool:
        """Whether a state grows with what was read."""
        return any(state.grows is not None for state in self.states)

    @property
    def takes_tokens(self) -> bool:
        """Whether it is a language model: its first input is token ids, its first output logits."""
        return self.tokens is not None

    @property
    def vocab_size(self) -> int:
        """Token ids are in [0, vocab_size); 0 for a program without tokens."""
        return 0 if self.tokens is None else self.tokens.vocab_size

    @property
    def eos_token_id(self) -> int | None:
        """Token that ends a text, or None."""
        return None if self.tokens is None else self.tokens.eos_token_id

    @property
    def last_logits_only(self) -> bool:
        """Whether the program returns the last step's logits alone."""
        return self.tokens is not None and self.tokens.last_logits_only

    @property
    def source_path(self) -> str | None:
        """Folder of the checkpoint that it was exported from; None where it was a module in memory."""
        return self.source["path"]

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.folder / contract.MODEL_FILE


def write_metadata(
    folder: Path,
    program: Program,
    *,
    dtype: str,
    opset: int,
    model: Mapping[str, Any] | None,
    source: Mapping[str, Any],
    versions: Mapping[str, str],
) -> None:
    """Write ``mamba_export.json`` of a program into a folder.

    Args:
        folder: an existing folder.
        program: its module is not looked at.
        dtype, opset, model, source, versions: see ``Metadata``.
    """
    write_json(
        folder / contract.METADATA_FILE,
        {
            "format": contract.METADATA_FORMAT,
            "contract_version": contract.CONTRACT_VERSION,
            "dtype": dtype,
            "opset": opset,
            "inputs": [asdict(value) for value in program.inputs],
            "outputs": [asdict(value) for value in program.outputs],
            "states": [_state_to_json(state) for state in program.states],
            "tokens": None if program.tokens is None else asdict(program.tokens),
            "model": None if model is None else dict(model),
            "source": dict(source),
            "versions": dict(versions),
        },
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file for people and programs."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_metadata(folder: str | Path) -> Metadata:
    """Read ``mamba_export.json`` of an exported folder; folders of older versions of the file are converted.

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

    found = _check_version(path, content, "format", contract.METADATA_FORMAT, oldest=1)
    _check_version(path, content, "contract_version", contract.CONTRACT_VERSION)
    try:
        metadata = _parse(folder, from_format_1(content) if found == 1 else content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SessionError(f"{path} is damaged ({error}): export the model again") from error
    if not metadata.model_path.is_file():
        raise SessionError(f"{folder} has no {contract.MODEL_FILE}: export the model again")
    return metadata


def _check_version(
    path: Path, content: Any, key: str, newest: int, oldest: int | None = None
) -> int:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, int):
        raise SessionError(f"{path} is damaged (no {key}): export the model again")
    if not (newest if oldest is None else oldest) <= found <= newest:
        read = f"{newest}" if oldest is None else f"{oldest} to {newest}"
        raise SessionError(
            f"{path} has {key} {found}, this version of mamba-export reads {read}: "
            "export the model again with this version"
        )
    return found


def _parse(folder: Path, content: dict[str, Any]) -> Metadata:
    inputs = tuple(map(_value, content["inputs"]))
    outputs = tuple(map(_value, content["outputs"]))
    states = tuple(map(_state, content["states"]))
    if not inputs or not outputs:
        raise ValueError("no inputs or no outputs")
    for values in (
        (*inputs, *(state.past for state in states)),
        (*outputs, *(state.present for state in states)),
    ):
        if len({value.name for value in values}) != len(values):
            raise ValueError("a name occurs twice")
    return Metadata(
        folder=folder,
        dtype=_one_of(content["dtype"], contract.DTYPES),
        opset=int(content["opset"]),
        inputs=inputs,
        outputs=outputs,
        states=states,
        tokens=None if content["tokens"] is None else _tokens(content["tokens"]),
        model=None if content["model"] is None else dict(content["model"]),
        source={"path": None, **content["source"]},
        versions=dict(content["versions"]),
    )


def _tokens(content: dict[str, Any]) -> Tokens:
    eos = content["eos_token_id"]
    return Tokens(
        vocab_size=int(content["vocab_size"]),
        eos_token_id=None if eos is None else int(eos),
        last_logits_only=bool(content["last_logits_only"]),
    )


def _value(content: dict[str, Any]) -> Value:
    dtype = _one_of(content["dtype"], tuple(NUMPY_DTYPES))
    return Value(str(content["name"]), dtype, _shape(content["shape"]))


def _shape(sizes: list[int | str]) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, str) else int(size) for size in sizes)


def _state_to_json(state: State) -> dict[str, Any]:
    return {
        "name": state.name,
        "past": state.past.name,
        "present": state.present.name,
        "dtype": state.past.dtype,
        "shape": state.past.shape,
        "start": state.start,
        "grows": state.grows,
    }


def _state(content: dict[str, Any]) -> State:
    grows = content["grows"]
    return State.of(
        str(content["name"]),
        str(content["past"]),
        str(content["present"]),
        _one_of(content["dtype"], tuple(NUMPY_DTYPES)),
        _shape(content["shape"]),
        float(content["start"]),
        None if grows is None else int(grows),
    )


def _one_of(value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return value
