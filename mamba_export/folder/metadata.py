"""The metadata file of an exported folder, ``mamba_export.json``: written and read here, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mamba_export import contract, given
from mamba_export.contract.discretization import DISCRETIZATIONS
from mamba_export.contract.program import Program, State, Tokens, Value
from mamba_export.contract.weights import METHODS, WEIGHT_KINDS, Weights
from mamba_export.errors import SessionError
from mamba_export.fields import (
    END_TOKENS,
    Boolean,
    Choice,
    Either,
    Fields,
    Integer,
    ListOf,
    Number,
    Object,
    OrNone,
    Text,
)
from mamba_export.files import write_text
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.old_metadata import from_format_1
from mamba_export.untrusted import check_file, is_folder, is_there, read_json

_AGAIN = "export the model again"
_MOST_AXES = 32  # numpy 1's limit


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
        weights: how the matrices of products are stored; None for the dtype of the file.
        discretization: how its scans discretise B, of ``DISCRETIZATIONS``; empty where there is no scan, None
            where an older version wrote the file, which knew Euler's rule alone.
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
    weights: Weights | None = None
    discretization: tuple[str, ...] | None = None

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
    def eos_token_id(self) -> int | tuple[int, ...] | None:
        """Token that ends a text, several of which any one does, or None."""
        return None if self.tokens is None else self.tokens.eos_token_id

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """``eos_token_id`` as a tuple, without those that the vocabulary has not."""
        return () if self.tokens is None else self.tokens.end_tokens

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
    weights: Weights | None = None,
    discretization: Sequence[str] | None = None,
) -> None:
    """Write ``mamba_export.json`` of a program into a folder.

    Args:
        folder: an existing folder.
        program: its module is not looked at.
        dtype, opset, model, source, versions, weights, discretization: see ``Metadata``.
    """
    write_json(
        folder / contract.METADATA_FILE,
        {
            "format": contract.METADATA_FORMAT,
            "contract_version": contract.CONTRACT_VERSION,
            "dtype": dtype,
            "opset": opset,
            "weights": None if weights is None else asdict(weights),
            "discretization": None if discretization is None else list(discretization),
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
    folder = given.path(folder, "the folder", SessionError)
    if not is_there(folder, error=SessionError):
        raise SessionError(f"{folder}: no such folder")
    if not is_folder(folder, error=SessionError):
        raise SessionError(
            f"{folder} is a file: give the folder that `mamba-export export` wrote, which holds "
            f"{contract.MODEL_FILE} and {contract.METADATA_FILE}"
        )
    path = folder / contract.METADATA_FILE
    if not is_there(path, error=SessionError):
        raise SessionError(
            f"{folder} was not written by mamba-export: it has no {contract.METADATA_FILE}"
        )
    content = read_json(path, error=SessionError, remedy=_AGAIN)

    def damaged(problem: str) -> SessionError:
        return SessionError(f"{path} is damaged ({problem}): {_AGAIN}")

    fields = Fields(content, damaged)
    found = _check_version(path, fields, "format", contract.METADATA_FORMAT, oldest=1)
    _check_version(path, fields, "contract_version", contract.CONTRACT_VERSION)
    if found == 1:
        fields = Fields(from_format_1(fields), damaged)
    metadata = _parse(folder, fields)
    if not is_there(metadata.model_path, error=SessionError):
        raise SessionError(f"{folder} has no {contract.MODEL_FILE}: {_AGAIN}")
    for name in (contract.MODEL_FILE, contract.WEIGHTS_FILE):  # a runtime's own message says less
        if is_there(folder / name, error=SessionError):  # small models have no file of weights
            check_file(folder / name, error=SessionError)
    return metadata


def _check_version(
    path: Path, fields: Fields, key: str, newest: int, oldest: int | None = None
) -> int:
    found = fields.take(key, Integer())
    if not (newest if oldest is None else oldest) <= found <= newest:
        read = f"{newest}" if oldest is None else f"{oldest} to {newest}"
        raise SessionError(
            f"{path} has {key} {found}, this version of mamba-export reads {read}: "
            "export the model again with this version"
        )
    return found


def _parse(folder: Path, fields: Fields) -> Metadata:
    inputs = tuple(map(_value, fields.each("inputs")))
    outputs = tuple(map(_value, fields.each("outputs")))
    states = tuple(map(_state, fields.each("states")))
    if not inputs or not outputs:
        raise fields.complain("no inputs or no outputs")
    for values in (
        (*inputs, *(state.past for state in states)),
        (*outputs, *(state.present for state in states)),
    ):
        if len({value.name for value in values}) != len(values):
            raise fields.complain("a name occurs twice")
    return Metadata(
        folder=folder,
        dtype=fields.take("dtype", Choice(contract.DTYPES)),
        opset=fields.take("opset", Integer(1)),
        inputs=inputs,
        outputs=outputs,
        states=states,
        tokens=_tokens(fields, inputs[0], outputs[0]),
        model=None if fields.take("model", OrNone(Object())) is None else fields.get("model"),
        source={"path": None, **_source(fields)},
        versions=fields.take("versions", Object(Text())),
        weights=_weights(fields),
        discretization=_discretization(fields),
    )


def _discretization(fields: Fields) -> tuple[str, ...] | None:
    if fields.get("discretization") is None:  # absent where an older version wrote the file
        return None
    rule = ListOf(Choice(tuple(DISCRETIZATIONS)), longest=len(DISCRETIZATIONS))
    found: list[str] = fields.take("discretization", rule)
    return tuple(found)


def _weights(fields: Fields) -> Weights | None:
    if fields.get("weights") is None:  # absent where an older version wrote the file
        return None
    inside = fields.inside("weights")
    return Weights(
        kind=inside.take("kind", Choice(WEIGHT_KINDS)),
        block=inside.take("block", Integer(1)),
        symmetric=inside.take("symmetric", Boolean()),
        head=inside.take("head", Boolean()),
        embeddings=inside.take("embeddings", Boolean()),
        method=inside.take("method", Choice(METHODS)),
    )


def _source(fields: Fields) -> dict[str, Any]:
    source = fields.take("source", Object())
    if "path" in source:
        fields.inside("source").take("path", OrNone(Text()))
    return source


def _tokens(fields: Fields, ids: Value, logits: Value) -> Tokens | None:
    if fields.take("tokens", OrNone(Object())) is None:
        return None
    inside = fields.inside("tokens")
    vocab_size = inside.take("vocab_size", Integer(1))
    if len(ids.shape) != 2 or not ids.dtype.startswith("int"):
        raise fields.complain(
            f"tokens are of shape (batch, length), and {ids.name} is {ids.layout}"
        )
    if len(logits.shape) != 3 or logits.shape[-1] != vocab_size:
        raise fields.complain(
            f"tokens.vocab_size is {vocab_size}, and {logits.name} is {logits.layout}"
        )
    eos = inside.take("eos_token_id", END_TOKENS)
    return Tokens(
        vocab_size=vocab_size,
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        last_logits_only=inside.take("last_logits_only", Boolean()),
    )


def _shape(fields: Fields) -> tuple[int | str, ...]:
    size = Either(Integer(), Text(r"(?!\d+$)(?s:.+)", described="a name"))
    sizes: list[int | str] = fields.take("shape", ListOf(size, longest=_MOST_AXES))
    return tuple(sizes)


def _value(fields: Fields) -> Value:
    return Value(
        fields.take("name", Text()),
        fields.take("dtype", Choice(tuple(NUMPY_DTYPES))),
        _shape(fields),
    )


def _state_to_json(state: State) -> dict[str, Any]:
    content = {
        "name": state.name,
        "past": state.past.name,
        "present": state.present.name,
        "dtype": state.past.dtype,
        "shape": state.past.shape,
        "start": state.start,
        "grows": state.grows,
    }
    return content if state.longest is None else {**content, "longest": state.longest}


def _state(fields: Fields) -> State:
    state = (
        fields.take("name", Text()),
        fields.take("past", Text()),
        fields.take("present", Text()),
        fields.take("dtype", Choice(tuple(NUMPY_DTYPES))),
        _shape(fields),
        fields.take("start", Number()),
        fields.take("grows", OrNone(Integer())),
    )
    # Absent of positions that reach any length, and where an older version wrote the file.
    longest = fields.take("longest", OrNone(Integer())) if "longest" in fields.data else None
    try:
        return State.of(*state, longest)
    except ValueError:
        fields.refuse("grows", f": no axis that can grow of {list(state[4])}")
