"""``engine.json``: what an engine is, written and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mamba_export import contract
from mamba_export.backends.tensorrt.fingerprint import fingerprint
from mamba_export.backends.tensorrt.names import (
    DESCRIPTION_FILE,
    DESCRIPTION_FORMAT,
    KINDS,
    Kind,
)
from mamba_export.backends.tensorrt.profiles import Profile, Range
from mamba_export.contract.program import Value
from mamba_export.errors import EngineError
from mamba_export.fields import (
    Boolean,
    Choice,
    Fields,
    Integer,
    ListOf,
    Number,
    Object,
    OrNone,
    Text,
    shown,
)
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import Metadata
from mamba_export.untrusted import is_there, read_json

_AGAIN = "build the engine again"


@dataclass(frozen=True)
class EngineDescription:
    """What ``engine.json`` says of the engine beside it.

    Args:
        runtime: "tensorrt" or "tensorrt_rtx".
        runtime_version: "major.minor.patch" of what built it; None in a bundle, where nothing was built.
        compute_capability: of the GPU that it is for, or None where it is not tied to one.
        contract_version: of the operators.
        plugins: number of plugin layers by operator; empty where the engine has none.
        plugin_library: file name of the library that the engine needs, or None.
        engine_sha256: of the engine file, or None in a bundle.
        precision: "fp32", "fp16" or "bf16".
        byte_tokenizer: token ids are byte values.
        inputs, outputs: name, dtype and shape, -1 where dynamic, in graph order.
        profiles: in the engine's order.
        states: (input, output) name of each state.
        vocab_size: 0 for a program without tokens.
        version_compatible, hardware_compatible: as built.
        model: fingerprint of the exported model that it was built from.
        build: seconds, peak_memory_mib and engine_bytes.
    """

    runtime: str
    runtime_version: str | None
    compute_capability: str | None
    contract_version: int
    plugins: dict[str, int]
    plugin_library: str | None
    engine_sha256: str | None
    precision: str
    byte_tokenizer: bool
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    profiles: tuple[Profile, ...]
    states: list[tuple[str, str]]
    vocab_size: int
    version_compatible: bool
    hardware_compatible: bool
    model: dict[str, Any]
    build: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """Of the runtime."""
        return next(kind for kind in KINDS if kind.name == self.runtime)

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        content = {"format": DESCRIPTION_FORMAT, **vars(self)}
        content["profiles"] = [
            {
                "name": p.name,
                "batch": list(p.batch),
                "length": list(p.length),
                # Of programs with other axes than these two.
                **({"sizes": {k: list(three) for k, three in p.sizes.items()}} if p.sizes else {}),
            }
            for p in self.profiles
        ]
        content["states"] = [list(pair) for pair in self.states]
        return content

    @classmethod
    def from_fields(cls, fields: Fields) -> EngineDescription:
        """Read what ``to_json`` wrote. Raises what ``fields`` raises where it is damaged."""
        return cls(
            runtime=fields.take("runtime", Choice([kind.name for kind in KINDS])),
            runtime_version=fields.take("runtime_version", OrNone(_VERSION)),
            compute_capability=fields.take("compute_capability", OrNone(_VERSION)),
            contract_version=fields.take("contract_version", Integer()),
            plugins=fields.take("plugins", Object(Integer())),
            plugin_library=fields.take("plugin_library", OrNone(Text())),
            engine_sha256=fields.take("engine_sha256", OrNone(Text())),
            precision=fields.take("precision", Choice(contract.DTYPES)),
            byte_tokenizer=fields.take("byte_tokenizer", Boolean()),
            inputs=[_tensor(one) for one in fields.each("inputs")],
            outputs=[_tensor(one) for one in fields.each("outputs")],
            profiles=tuple(map(_profile, fields.each("profiles"))),
            states=[
                (past, present)
                for past, present in fields.take("states", ListOf(ListOf(Text(), 2, 2)))
            ],
            vocab_size=fields.take("vocab_size", Integer()),
            version_compatible=fields.take("version_compatible", Boolean()),
            hardware_compatible=fields.take("hardware_compatible", Boolean()),
            model=fields.take("model", Object(OrNone(Text()))),
            build=fields.take("build", Object(Number(0))),
        )


_VERSION = Text(r"\d{1,6}(\.\d{1,6}){1,3}", "numbers with dots between them")
_DYNAMIC = -1


def _tensor(fields: Fields) -> dict[str, Any]:
    return {
        "name": fields.take("name", Text()),
        "dtype": fields.take("dtype", Choice(tuple(NUMPY_DTYPES))),
        "shape": fields.take("shape", ListOf(Integer(_DYNAMIC))),
    }


def _profile(fields: Fields) -> Profile:
    sizes = fields.inside("sizes") if "sizes" in fields.data else None
    return Profile(
        fields.take("name", Text()),
        _range(fields, "batch", 1),
        _range(fields, "length", 1),
        {} if sizes is None else {name: _range(sizes, name, 0) for name in sizes.data},
    )


def _range(fields: Fields, name: str, smallest: int) -> Range:
    minimum, optimum, maximum = fields.take(name, ListOf(Integer(smallest), 3, 3))
    if not minimum <= optimum <= maximum:
        fields.refuse(name, ", expected minimum, optimum and maximum")
    return minimum, optimum, maximum


def describe_tensors(tensors: Sequence[Value]) -> list[dict[str, Any]]:
    """Name, dtype and shape, -1 where dynamic."""
    return [
        {
            "name": tensor.name,
            "dtype": tensor.dtype,
            "shape": [_DYNAMIC if isinstance(size, str) else size for size in tensor.shape],
        }
        for tensor in tensors
    ]


def is_byte_tokenizer(folder: Path) -> bool:
    """Whether the folder's tokenizer maps each byte of a text to the token of its value."""
    path = folder / contract.TOKENIZER_FILE
    if not is_there(path, error=EngineError):
        return False
    from mamba_export.folder.bytes_tokenizer import byte_characters

    content = read_json(path, error=EngineError)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        return False
    expected = {character: byte for byte, character in enumerate(byte_characters())}
    return model.get("vocab") == expected and not content.get("added_tokens")


def read_description(folder: Path) -> EngineDescription:
    """Read ``engine.json``.

    Raises:
        EngineError: there is none, it is damaged, or of a layout that this version does not read.
    """
    path = folder / DESCRIPTION_FILE
    if not is_there(path, error=EngineError):
        raise EngineError(f"{folder} has no engine: run `mamba-export build {folder}`")
    content = read_json(path, error=EngineError, remedy=_AGAIN)
    found = content.get("format") if isinstance(content, dict) else None
    if found != DESCRIPTION_FORMAT:
        raise EngineError(
            f"{path} has format {shown(found)}, this version of mamba-export reads {DESCRIPTION_FORMAT}: "
            "build the engine again with this version"
        )

    def damaged(problem: str) -> EngineError:
        return EngineError(f"{path} is damaged ({problem}): {_AGAIN}")

    description = EngineDescription.from_fields(Fields(content, damaged))
    if description.contract_version != contract.CONTRACT_VERSION:
        raise EngineError(
            f"{path} has contract_version {description.contract_version}, this version of mamba-export "
            f"runs {contract.CONTRACT_VERSION}: export and build again"
        )
    return description


def describe(
    metadata: Metadata,
    *,
    runtime: str,
    profiles: tuple[Profile, ...],
    plugins: Mapping[str, int],
    plugin_library: str | None,
    **engine: Any,
) -> EngineDescription:
    """The description of an engine of an exported model; ``engine`` are the fields that only a build knows."""
    return EngineDescription(
        **{
            "runtime": runtime,
            "runtime_version": None,
            "compute_capability": None,
            "contract_version": contract.CONTRACT_VERSION,
            "plugins": dict(plugins),
            "plugin_library": plugin_library,
            "engine_sha256": None,
            "precision": metadata.dtype,
            "byte_tokenizer": is_byte_tokenizer(metadata.folder),
            "inputs": describe_tensors(metadata.graph_inputs),
            "outputs": describe_tensors(metadata.graph_outputs),
            "profiles": profiles,
            "states": [(state.past.name, state.present.name) for state in metadata.states],
            "vocab_size": metadata.vocab_size,
            "version_compatible": False,
            "hardware_compatible": False,
            "model": fingerprint(metadata.folder),
            **engine,
        }
    )
