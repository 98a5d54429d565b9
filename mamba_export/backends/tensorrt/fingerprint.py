"""What tells one exported model, or one file, from another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mamba_export import contract

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
    if weights.is_file():
        size = weights.stat().st_size
        hashed = hashlib.sha256(str(size).encode())
        with weights.open("rb") as file:
            for index in range(_SAMPLES):
                file.seek(index * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                hashed.update(file.read(_SAMPLE_BYTES))
        digest = hashed.hexdigest()
    return {"graph_sha256": sha256(folder / contract.MODEL_FILE), "weights_sample_sha256": digest}


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()
