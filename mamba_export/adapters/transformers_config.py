"""Which models of transformers are taken, by what their configurations say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mamba_export.errors import CheckpointError, ExportError, MambaExportError
from mamba_export.printing import printable
from mamba_export.untrusted import read_json

MODEL_TYPES = (
    # Layers of Mamba-1, some with experts or shared attention.
    "jamba",
    "zamba",
    # Layers of Mamba-2.
    "bamba",
    "falcon_h1",
    "granitemoehybrid",
    "nemotron_h",
    "zamba2",
)
"""Those that are run by transformers' own modelling files; Mamba and FalconMamba are models of this package."""

_LAYER_TYPES = {
    "linear_attention",  # transformers' name of a layer of Mamba
    "full_attention",
    "hybrid",  # both
    "mlp",
    "moe",
    "mamba",  # names of older configurations
    "attention",
}
_OF_THE_LENGTH = ("dynamic", "longrope")
_LISTS = ("layer_types", "layers_block_type")
_PATTERN, _LETTERS = "hybrid_override_pattern", "M*-E"
"""Nemotron-H's own list: a letter a layer."""


def is_of_known_type(config: Any) -> bool:
    """Whether a configuration, as JSON or as an object, is of one of ``MODEL_TYPES``."""
    if isinstance(config, dict):
        return config.get("model_type") in MODEL_TYPES
    return getattr(config, "model_type", None) in MODEL_TYPES


def check_folder(folder: Path) -> None:
    """Refuse a layer that is not known before transformers reads the folder: it does not say which.

    Raises:
        CheckpointError: config.json cannot be read, or names a layer of another type.
    """
    path = folder / "config.json"
    config = read_json(path, error=CheckpointError)
    if isinstance(config, dict):
        _check({name: config.get(name) for name in (*_LISTS, _PATTERN)}, str(path), CheckpointError)


def check_model(model: Any) -> None:
    """Refuse what a graph of any length cannot hold.

    Raises:
        ExportError: a layer of a type that is not known, or rotary frequencies that change with the length.
    """
    config, name = model.config, type(model).__name__
    _check({one: getattr(config, one, None) for one in _LISTS}, name, ExportError)
    rotary = getattr(config, "rope_parameters", None)
    scaling = rotary.get("rope_type") if isinstance(rotary, dict) else None
    if scaling in _OF_THE_LENGTH:
        raise ExportError(
            f"{name}: rope_type {scaling!r} changes the keys that were kept with the length of the text: "
            "export it with the rope_type that fits your texts (default, linear, llama3, yarn)"
        )


def _check(fields: dict[str, Any], where: str, error: type[MambaExportError]) -> None:
    for name, index, found in _layers(fields):
        known = _LETTERS if name == _PATTERN else sorted(_LAYER_TYPES)
        if found not in known:
            raise error(
                f"{where}: layer {index} is {printable(str(found))!r} in {name}, which is not known; known are "
                f"{', '.join(known)}"
            )


def _layers(fields: dict[str, Any]) -> Iterator[tuple[str, int, Any]]:
    """Name of the list, index and type of every layer; what is no list is transformers' to refuse."""
    for name, found in fields.items():
        expected = str if name == _PATTERN else (list, tuple)
        if isinstance(found, expected):
            for index, one in enumerate(found):
                yield name, index, one
