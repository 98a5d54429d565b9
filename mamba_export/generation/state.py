"""Checks of a state against the program that is to take it, whatever runtime holds it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from mamba_export import given
from mamba_export.contract.program import State
from mamba_export.errors import SessionError
from mamba_export.fields import LARGEST_SIZE
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import Metadata
from mamba_export.generation.values import as_array, is_numeric
from mamba_export.memory import available_memory


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


class _HasTensors(Protocol):
    """A backend's state."""

    @property
    def tensors(self) -> tuple[Any, ...]:
        """In the metadata's order."""
        ...


KindT = TypeVar("KindT", bound=_HasTensors)

_ASK_ABOVE = 1 << 26
"""Bytes from which on the system is asked for its memory before an allocation: asking takes a while."""


def step_sizes(metadata: Metadata, batch: int) -> dict[str, int]:
    """Sizes of a step: one token, or one sample, of each sequence."""
    sizes = zip(metadata.inputs[0].shape[:2], (batch, 1), strict=True)
    return {size: number for size, number in sizes if isinstance(size, str)}


def batch_sizes(metadata: Metadata, batch: int) -> dict[str, int]:
    """Sizes of the states of a batch, as far as the batch says them.

    Raises:
        SessionError: the batch is no integer, or below 1, or above what any axis can have.
    """
    batch = given.integer(batch, "batch", 1, LARGEST_SIZE, SessionError)
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
    """What a state holds before anything was read. SessionError where memory cannot hold it."""
    dtype = NUMPY_DTYPES[state.past.dtype]
    with allocating(shape, dtype.itemsize):
        return np.full(shape, state.start, dtype)


@contextlib.contextmanager
def allocating(shape: tuple[int, ...], item_bytes: int, where: str = "the host") -> Iterator[None]:
    """Around an allocation of host memory for a tensor: SessionError, with the size, where there is not enough.

    The operating system may promise memory that it does not have, and end the process that uses it; so what it
    says is available is asked first.
    """
    needed = math.prod(shape) * item_bytes
    problem = SessionError(
        f"out of memory on {where}: failed to allocate {needed:,} bytes for a tensor of shape {shape}: "
        "use a smaller batch"
    )
    if needed > _ASK_ABOVE:
        free = available_memory()
        if free is not None and needed > free:
            raise problem
    try:
        yield
    except (MemoryError, ValueError) as error:  # ValueError: beyond what an address can hold
        raise problem from error


def model_arrays(arrays: Sequence[np.ndarray], metadata: Metadata) -> list[np.ndarray]:
    """Arrays of a state in the program's dtypes, in the metadata's order; their shapes are not looked at.

    Raises:
        SessionError: they are no arrays of numbers, or their count is not that of the program's states.
    """
    infos = metadata.states
    found = state_arrays(arrays)
    if len(found) != len(infos):
        raise SessionError(f"state has {len(found)} tensors, the model has {len(infos)}")
    converted = []
    for array, info in zip(found, infos, strict=True):
        dtype = NUMPY_DTYPES[info.past.dtype]
        if not is_numeric(array) or (dtype.kind in "iub" and array.dtype.kind not in "iub"):
            raise SessionError(
                f"state {info.past.name} is given as {array.dtype}, expected {info.past.dtype}"
            )
        converted.append(array.astype(dtype, copy=False))
    return converted


def state_arrays(arrays: Any) -> list[np.ndarray]:
    """A sequence of arrays, or of what can be one; SessionError where it is something else."""
    found = given.listed(arrays, "a state", "a list of arrays, one a state tensor", SessionError)
    return [as_array(array, f"state tensor {index}") for index, array in enumerate(found)]


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


def check_reach(tensors: Sequence[Tensor], metadata: Metadata, sizes: Mapping[str, int]) -> None:
    """Check that a program's positions reach what a run would have read at its end.

    Args:
        tensors: of the state before the run, which fits the program.
        metadata: of the program.
        sizes: of the run's inputs.

    Raises:
        SessionError: they end before; beyond them a model computes with positions that it was not made for.
    """
    for tensor, info in zip(tensors, metadata.states, strict=True):
        if info.longest is None or info.grows is None:
            continue
        length = tensor.shape[info.grows] + metadata.inputs[0].resolve(sizes)[1]
        if length > info.longest:
            raise SessionError(
                f"the sequence would have {length:,} steps, and this model's positions end at "
                f"{info.longest:,}: start anew from a shorter part of it"
            )


def selection(indices: Any, batch: int) -> np.ndarray:
    """Indices of sequences of a batch as int64; SessionError unless there is at least one and all are in it."""
    expected = f"a list of integers, at least one, each from 0 to {batch - 1}"
    try:
        listed = given.listed(indices, "indices", expected, SessionError)
        rows = [given.integer(index, "index", 0, batch - 1, SessionError) for index in listed]
    except SessionError:
        rows = []
    if not rows:
        raise SessionError(
            f"cannot select sequences {given.shown(indices)} of a state of batch {batch}: give {expected}"
        )
    return np.array(rows, np.int64)


def alike(states: Any, kind: type[KindT]) -> list[KindT]:
    """Check that states may become one batch.

    Args:
        states: any number of states.
        kind: class of a backend's state, which has ``tensors``.

    Returns:
        The states as a list.

    Raises:
        SessionError: there are none, they are of different backends or models, or have grown to different
            lengths.
    """
    expected = f"a list of {kind.__name__}, of one model"
    listed = given.listed(states, "what to concatenate", expected, SessionError)
    for state in listed:
        if not isinstance(state, kind):
            raise SessionError(f"cannot concatenate {given.shown(state)}: give {expected}")
    _check_alike([state.tensors for state in listed])
    return listed


def _check_alike(states: Sequence[Sequence[Tensor]]) -> None:
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
