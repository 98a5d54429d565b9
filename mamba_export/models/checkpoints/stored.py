"""A tensor in a weight file, and the error of a file that is damaged."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mamba_export.errors import CheckpointError, first_line, named_first_line
from mamba_export.printing import printable
from mamba_export.untrusted import open_file


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its name, shape and dtype there, and how to read it.

    A dtype that MambaLM does not take may stand as the file's own name of it.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    read: Callable[[], Tensor]


def damaged(path: Path, error: Exception) -> CheckpointError:
    """What to raise where a library cannot read a weight file."""
    with open_file(path, error=CheckpointError) as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return CheckpointError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull`")
    # weights_only's reason comes after a paragraph of advice not to heed it.
    reason = first_line(error, after="WeightsUnpickler error:")
    if isinstance(error, LookupError):  # its text is a key alone
        reason = named_first_line(error)
    reason = printable(reason)[:160]
    foreign = " or no file of torch.save" if isinstance(error, pickle.UnpicklingError) else ""
    return CheckpointError(
        f"{path} is truncated or damaged{foreign} ({reason}) and was not loaded: fetch it again"
    )
