"""Checks of a state against the program that is to take it, whatever runtime holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from mamba_export.contract.program import State
from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import Metadata


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


def step_sizes(metadata: Metadata, batch: int) -> dict[str, int]:
    """Sizes of a step of a language model: one token a sequence."""
    sizes = zip(metadata.inputs[0].shape, (batch, 1), strict=True)
    return {size: number for size, number in sizes if isinstance(size, str)}


def batch_sizes(metadata: Metadata, batch: int) -> dict[str, int]:
    """Sizes of the states of a batch, as far as the batch says them. SessionError for a batch below 1."""
    if batch < 1:
        raise SessionError(f"batch is {batch}, expected at least 1")
    firsts = (state.past.shape[0] for state in metadata.states)
    return {size: batch for size in firsts if isinstance(size, str)}


def start_shapes(metadata: Metadata, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Shapes that the states start with; what grows starts with length 0.

    Args:
        metadata: of the program.
        sizes: of the axes that do not grow.

    Raises:
        SessionError: a state has an axis that the sizes say nothing of.
    """
    grown = {state.grown_axis: 0 for state in metadata.states if state.grown_axis is not None}
    shapes = []
    for state in metadata.states:
        try:
            shapes.append(state.past.resolve({**grown, **sizes}))
        except KeyError as error:
            raise SessionError(
                f"state {state.past.name} has an axis {error.args[0]} whose size only an input says: "
                "call run without a state"
            ) from None
    return shapes


def start_array(state: State, shape: tuple[int, ...]) -> np.ndarray:
    """What a state holds before anything was read."""
    return np.full(shape, state.start, NUMPY_DTYPES[state.past.dtype])


def model_arrays(arrays: Sequence[np.ndarray], metadata: Metadata) -> list[np.ndarray]:
    """Arrays of a state in the program's dtypes, in the metadata's order; their shapes are not looked at.

    Raises:
        SessionError: their count is not that of the program's states.
    """
    infos = metadata.states
    if len(arrays) != len(infos):
        raise SessionError(f"state has {len(arrays)} tensors, the model has {len(infos)}")
    return [
        np.asarray(array).astype(NUMPY_DTYPES[info.past.dtype], copy=False)
        for array, info in zip(arrays, infos, strict=True)
    ]


def check_state(
    tensors: Sequence[Tensor], metadata: Metadata, sizes: Mapping[str, int] | None = None
) -> None:
    """Check that a state fits a program, and the sizes of a run's inputs (None: any).

    Raises:
        SessionError: its count of tensors, or a shape, dtype or batch, is wrong, or states that grow together
            have not grown alike; the message names the tensor.
    """
    if len(tensors) != len(metadata.states):
        raise SessionError(
            f"state has {len(tensors)} tensors, the model has {len(metadata.states)}"
        )
    known = dict(sizes or {})
    for tensor, info in zip(tensors, metadata.states, strict=True):
        past = info.past
        if tensor.dtype != past.dtype:
            raise SessionError(f"state {past.name} has dtype {tensor.dtype}, expected {past.dtype}")
        if len(tensor.shape) != len(past.shape):
            raise SessionError(
                f"state {past.name} has shape {tensor.shape}, expected {past.layout}"
            )
        for size, found in zip(past.shape, tensor.shape, strict=True):
            if isinstance(size, str):
                known.setdefault(size, found)
        expected = past.resolve(known)
        if tensor.shape[1:] == expected[1:] and tensor.shape[0] != expected[0]:
            raise SessionError(
                f"state {past.name} has batch {tensor.shape[0]}, the input has batch {expected[0]}"
            )
        if tensor.shape != expected:
            raise SessionError(f"state {past.name} has shape {tensor.shape}, expected {expected}")


def check_selection(indices: Sequence[int], batch: int) -> None:
    """Raise SessionError unless these are indices, at least one, of sequences of a batch."""
    if len(indices) == 0 or min(indices) < 0 or max(indices) >= batch:
        raise SessionError(f"cannot select sequences {list(indices)} of a state of batch {batch}")


def check_alike(states: Sequence[Sequence[Tensor]]) -> None:
    """Check that states, each a sequence of tensors, may become one batch.

    Raises:
        SessionError: there are none, they are of different models, or have grown to different lengths.
    """
    if not states:
        raise SessionError("cannot concatenate no states")
    kinds = {tuple((t.dtype, len(t.shape)) for t in tensors) for tensors in states}
    if len(kinds) > 1:
        raise SessionError("cannot concatenate states of different models")
    for column in zip(*states, strict=True):
        shapes = {tensor.shape[1:] for tensor in column}
        if len(shapes) > 1:
            raise SessionError(
                "cannot concatenate states of different models, or that have grown to different lengths: "
                f"shapes {', '.join(map(str, sorted(shapes)))} after the batch"
            )
