"""A safetensors file -> tensors by name."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mamba_export.errors import CheckpointError
from mamba_export.fields import shown
from mamba_export.models.checkpoints.stored import StoredTensor, damaged
from mamba_export.untrusted import open_file, utf8_name

_LONGEST_HEADER = 100_000_000  # safetensors' own limit

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def read_safetensors(path: Path) -> list[StoredTensor]:
    """Tensors of a file, in its order; each is read when it is asked for.

    Raises:
        CheckpointError: the file is damaged, or cannot be read.
    """
    _check_names(path)
    try:
        with _opened(path) as file:
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            found = {
                name: (tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()
            }
    except SafetensorError as error:
        raise damaged(path, error) from error
    return [
        StoredTensor(
            path,
            name,
            shape,
            _DTYPES.get(dtype, dtype),
            partial(_read, path, name),
        )
        for name, (shape, dtype) in found.items()
    ]


def _check_names(path: Path) -> None:
    """Refuse a header that holds a name twice: readers differ in which of the two they take.

    Raises:
        CheckpointError: it does, or the file cannot be read. Any other damage is left to safetensors.
    """
    with open_file(path, error=CheckpointError) as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= _LONGEST_HEADER else b""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) != len(pairs):
            twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
            raise CheckpointError(
                f"{path} is damaged (its header holds {shown(twice)} twice) and was not loaded: fetch it again"
            )
        return names

    with contextlib.suppress(ValueError, RecursionError):
        json.loads(header, object_pairs_hook=once)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """safetensors' reader of a file."""
    with utf8_name(path, error=CheckpointError) as name, safe_open(name, framework="pt") as file:
        yield file


def _read(path: Path, name: str) -> Tensor:
    # The file is opened anew for each tensor: what an opening has read stays mapped, and counts as
    # ours, until the last of its tensors is gone. It costs a millisecond.
    try:
        with _opened(path) as file:
            return file.get_tensor(name)
    except SafetensorError as error:  # it was whole a moment ago
        raise damaged(path, error) from error
