"""What tells one exported model, or one file, from another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from mamba_export import contract
from mamba_export.errors import EngineError
from mamba_export.untrusted import is_there, open_file

_CHUNK = 1 << 22
_SAMPLES = 64
_SAMPLE_BYTES = 4096


def fingerprint(folder: Path) -> dict[str, Any]:
    """What tells one exported model from another: its graph, and a sample of its weights.

    Reading gigabytes of weights at every start would take seconds, so 64 blocks spread over the file are
    hashed with its size: another training or dtype changes them all, ``verify`` finds a single number.
    """
    weights = folder / contract.WEIGHTS_FILE
    digest: str | None = None
    if is_there(weights, error=EngineError):
        with open_file(weights, error=EngineError) as file:
            size = os.fstat(file.fileno()).st_size
            hashed = hashlib.sha256(str(size).encode())
            for index in range(_SAMPLES):
                file.seek(index * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                hashed.update(file.read(_SAMPLE_BYTES))
        digest = hashed.hexdigest()
    return {"graph_sha256": sha256(folder / contract.MODEL_FILE), "weights_sample_sha256": digest}


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    hashed = hashlib.sha256()
    with open_file(path, error=EngineError) as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()
