"""Checks of an engine file against ``engine.json`` and the model beside it, before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from mamba_export import contract
from mamba_export.backends.tensorrt.description import EngineDescription, describe_tensors
from mamba_export.backends.tensorrt.fingerprint import fingerprint, sha256
from mamba_export.backends.tensorrt.names import DESCRIPTION_FILE, ENGINE_FILE, KINDS
from mamba_export.errors import EngineError
from mamba_export.folder.metadata import Metadata
from mamba_export.untrusted import is_there, open_file

_VERSION_AT = 24  # in an engine file: four bytes, major, minor, patch, build


HOST_CODE_VARIABLE = "MAMBA_EXPORT_ALLOW_ENGINE_CODE"
"""Environment variable: 1 lets engines run that carry a library of their own."""


def check_host_code(path: Path, description: EngineDescription) -> None:
    """Check that the user allows what an engine of --version-compatible needs.

    Such a file holds a library for the host, which TensorRT writes out and opens. That engine.json and its
    sha256 agree says nothing of who wrote the two, so nothing in the folder can allow it.

    Raises:
        EngineError: the user does not.
    """
    if description.version_compatible and os.environ.get(HOST_CODE_VARIABLE) != "1":
        raise EngineError(
            f"{path} was built with --version-compatible and carries a library of its own, which would run "
            f"here as code: set {HOST_CODE_VARIABLE}=1 if you trust who built it, or build it again without"
        )


def check_engine_file(folder: Path, description: EngineDescription) -> Path:
    """Check that the engine file is the one that its description is of, whole and of the right runtime.

    Returns:
        Its path.

    Raises:
        EngineError: it is missing, no engine, truncated, of another runtime or version, or another engine.
    """
    path = folder / ENGINE_FILE
    again = f"run `mamba-export build {folder} --force`"
    if not is_there(path, error=EngineError):
        raise EngineError(f"{folder} has no {ENGINE_FILE}: {again}")
    with open_file(path, error=EngineError) as file:
        head = file.read(_VERSION_AT + 4)
    kind = next((kind for kind in KINDS if head.startswith(kind.tag)), None)
    if kind is None or len(head) < _VERSION_AT + 4:
        raise EngineError(f"{path} is not an engine of TensorRT or TensorRT-RTX: {again}")
    if kind.name != description.runtime:
        raise EngineError(
            f"{path} is an engine of {kind.title}, {DESCRIPTION_FILE} describes one of "
            f"{description.kind.title}: {again}"
        )
    version = ".".join(map(str, head[_VERSION_AT : _VERSION_AT + 3]))
    if description.runtime_version is not None and version != description.runtime_version:
        raise EngineError(
            f"{path} was built by {kind.title} {version}, {DESCRIPTION_FILE} describes one of "
            f"{description.runtime_version}: {again}"
        )
    if description.engine_sha256 is not None and sha256(path) != description.engine_sha256:
        raise EngineError(
            f"{path} is truncated, or not the engine that {DESCRIPTION_FILE} describes: {again}"
        )
    return path


def check_model(folder: Path, description: EngineDescription, metadata: Metadata) -> None:
    """Check that the engine was built from the exported model of its folder.

    Raises:
        EngineError: it was built from another model, or another export of it.
    """
    same = (
        description.inputs == describe_tensors(metadata.graph_inputs)
        and description.outputs == describe_tensors(metadata.graph_outputs)
        and description.vocab_size == metadata.vocab_size
        and description.precision == metadata.dtype
    )
    found = fingerprint(folder)
    # A target may have left the weights behind: the engine holds its own.
    same = same and all(
        found[key] == description.model.get(key) for key in found if found[key] is not None
    )
    if not same:
        raise EngineError(
            f"{folder / ENGINE_FILE} was built from another model than {folder / contract.MODEL_FILE}: "
            f"run `mamba-export build {folder} --force`"
        )
