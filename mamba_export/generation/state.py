"""Checks of a state against the model that is to take it, whatever runtime holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import Metadata


def model_arrays(arrays: Sequence[np.ndarray], metadata: Metadata) -> list[np.ndarray]:
    """Arrays of a state in the model's dtypes, in the metadata's order; their shapes are not looked at.

    Raises:
        SessionError: their count is not that of the model's states.
    """
    infos = metadata.states
    if len(arrays) != len(infos):
        raise SessionError(f"state has {len(arrays)} tensors, the model has {len(infos)}")
    return [
        np.asarray(array).astype(NUMPY_DTYPES[info.past.dtype], copy=False)
        for array, info in zip(arrays, infos, strict=True)
    ]


class Tensor(Protocol):
    """A tensor of a state, wherever it lies."""

    @property
    def dtype(self) -> str:
        """Name of its dtype, as in the metadata."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...


def check_state(tensors: Sequence[Tensor], metadata: Metadata, batch: int | None = None) -> None:
    """Check that a state fits a model, and a batch (None: that of its first tensor).

    Raises:
        SessionError: its count of tensors, or a shape, dtype or batch, is wrong;
            the message names the tensor.
    """
    if len(tensors) != len(metadata.states):
        raise SessionError(
            f"state has {len(tensors)} tensors, the model has {len(metadata.states)}"
        )
    batch = tensors[0].shape[0] if batch is None else batch
    for tensor, info in zip(tensors, metadata.states, strict=True):
        expected = info.past.resolve(batch)
        if tensor.dtype != info.past.dtype:
            raise SessionError(
                f"state {info.past.name} has dtype {tensor.dtype}, expected {info.past.dtype}"
            )
        if tensor.shape[1:] == expected[1:] and tensor.shape[0] != batch:
            raise SessionError(
                f"state {info.past.name} has batch {tensor.shape[0]}, the input has batch {batch}"
            )
        if tensor.shape != expected:
            raise SessionError(
                f"state {info.past.name} has shape {tensor.shape}, expected {expected}"
            )
