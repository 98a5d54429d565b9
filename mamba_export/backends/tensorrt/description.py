"""``engine.json``: what an engine is, written and read."""

from __future__ import annotations

import json
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
from mamba_export.backends.tensorrt.profiles import Profile
from mamba_export.contract.program import Value
from mamba_export.errors import EngineError
from mamba_export.folder.metadata import Metadata


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
    def from_json(cls, content: dict[str, Any]) -> EngineDescription:
        """Read what ``to_json`` wrote. KeyError, TypeError or ValueError where it is damaged."""
        values = {name: content[name] for name in cls.__dataclass_fields__}
        if values["runtime"] not in {kind.name for kind in KINDS}:
            raise ValueError(f"runtime {values['runtime']!r} is unknown")
        values["profiles"] = tuple(
            Profile(
                str(p["name"]),
                _three(p["batch"]),
                _three(p["length"]),
                {str(name): _three(three) for name, three in p.get("sizes", {}).items()},
            )
            for p in values["profiles"]
        )
        values["states"] = [(str(past), str(present)) for past, present in values["states"]]
        return cls(**values)


def _three(numbers: list[int]) -> tuple[int, int, int]:
    minimum, optimum, maximum = map(int, numbers)
    return minimum, optimum, maximum


def describe_tensors(tensors: Sequence[Value]) -> list[dict[str, Any]]:
    """Name, dtype and shape, -1 where dynamic."""
    return [
        {
            "name": tensor.name,
            "dtype": tensor.dtype,
            "shape": [-1 if isinstance(size, str) else size for size in tensor.shape],
        }
        for tensor in tensors
    ]


def is_byte_tokenizer(folder: Path) -> bool:
    """Whether the folder's tokenizer maps each byte of a text to the token of its value."""
    path = folder / contract.TOKENIZER_FILE
    if not path.is_file():
        return False
    from mamba_export.folder.bytes_tokenizer import byte_characters

    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content.get("model", {}).get("vocab")
    expected = {character: byte for byte, character in enumerate(byte_characters())}
    return vocabulary == expected and not content.get("added_tokens")


def read_description(folder: Path) -> EngineDescription:
    """Read ``engine.json``.

    Raises:
        EngineError: there is none, it is damaged, or of a layout that this version does not read.
    """
    path = folder / DESCRIPTION_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineError(f"{folder} has no engine: run `mamba-export build {folder}`") from None
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} is damaged: build the engine again") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != DESCRIPTION_FORMAT:
        raise EngineError(
            f"{path} has format {found}, this version of mamba-export reads {DESCRIPTION_FORMAT}: "
            "build the engine again with this version"
        )
    try:
        description = EngineDescription.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{path} is damaged ({error}): build the engine again") from error
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
