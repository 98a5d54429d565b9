"""The states of a batch in one piece of a GPU's memory, so that one copy moves them all."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mamba_export.backends.onnxruntime.cuda_stream import DeviceMemory, GpuStream
from mamba_export.backends.onnxruntime.device import Device, DeviceTensor, storage_dtype
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.contract.program import split_axis
from mamba_export.folder.metadata import Metadata
from mamba_export.generation.state import batch_sizes, selection

LARGE = 1 << 28
"""Bytes of a batch's states from which on prompts and steps share a block, in memory of just its size. Of
smaller ones each has its own: threads that read prompts and decode at once then find their runs captured."""
_ALIGNMENT = 256  # bytes, as CUDA's own allocations have it


@dataclass(frozen=True)
class BlockKind:
    """What the blocks of a session have in common; it keeps the session's stream, and not its weights.

    Args:
        metadata: of a program whose states are of fixed size.
        device: of the GPU.
        gpu: its stream, on which blocks are read and written.
    """

    metadata: Metadata
    device: Device
    gpu: GpuStream

    @classmethod
    def of(cls, model: LoadedModel) -> BlockKind:
        """That of a model with a stream, ``model.gpu``."""
        assert model.gpu is not None
        return cls(model.metadata, model.device, model.gpu)

    @property
    def has_batches(self) -> bool:
        """Whether the sequences of a state lie side by side in each of its tensors."""
        firsts = {state.past.shape[0] for state in self.metadata.states}
        return all(isinstance(size, str) and split_axis(size)[0] == 1 for size in firsts)

    def bytes(self, batch: int) -> int:
        """Size of the block of a batch's states."""
        return sum(length for *_, length in _layout(self.metadata, batch))


class Place:
    """Where a state lies, which can change while it is held: in a block, until that is needed again."""

    __slots__ = ("__weakref__", "block", "memory")

    def __init__(self, memory: DeviceTensor | DeviceMemory, block: StateBlock | None) -> None:
        self.memory = memory
        self.block = block  # that lent it


class BlockTensor(DeviceTensor):
    """A state that lies in a block; it keeps the memory."""

    __slots__ = ("_gpu", "_offset", "_place")

    def __init__(
        self, place: Place, offset: int, dtype: str, shape: tuple[int, ...], kind: BlockKind
    ) -> None:
        self._place = place
        self._offset = offset
        self.dtype = dtype
        self.shape = shape
        self.device = kind.device
        self._gpu = kind.gpu

    @property
    def address(self) -> int:
        """Of its first element; another one once the state has moved, which happens under the stream's lock."""
        return self._place.memory.address + self._offset

    def _host(self) -> np.ndarray:
        stored = np.empty(self.shape, storage_dtype(self.dtype))
        if stored.nbytes:
            with self._gpu.lock:
                self._gpu.copy(stored.ctypes.data, self.address, stored.nbytes)
        return stored


class BlockState(OrtState):
    """A state whose tensors are those of a block, in order; it fits the program by its making."""

    def __init__(self, tensors: Sequence[BlockTensor], place: Place, kind: BlockKind) -> None:
        super().__init__(tensors)
        self.place = place
        self.kind = kind

    def select(self, indices: Sequence[int]) -> OrtState:
        """As ``OrtState.select``, and the sequences do not leave the GPU."""
        rows = selection(indices, self.batch).tolist()
        if not self.kind.has_batches:
            return super().select(rows)
        return gathered(self.kind, [(self, row) for row in rows])


class StateBlock:
    """Memory for every state of a batch; its content is undefined at first.

    A state that lies here may be lent, which copies nothing. Whoever writes here next calls ``move_lent``: if
    somebody still holds the state, it moves to memory of its own.

    Args:
        kind: that of the session's blocks.
        batch: number of sequences.

    Attributes:
        state: the block's tensors, for those who write them.
        nbytes: of the whole.
        is_taken: whether somebody works in the block, of those who share it (``StateMemory``).

    Raises:
        SessionError: the GPU has no memory for it.
    """

    def __init__(self, kind: BlockKind, batch: int) -> None:
        self._kind = kind
        self._gpu = kind.gpu
        self.batch = batch
        self._layout = _layout(kind.metadata, batch)
        self.nbytes = sum(length for *_, length in self._layout)
        self.is_taken = False
        self.state = self._state_at(Place(self._allocate(), None))
        self._lent: weakref.ref[Place] | None = None

    @property
    def is_large(self) -> bool:
        """Whether prompts and steps share it."""
        return self.nbytes >= LARGE

    @property
    def is_lent(self) -> bool:
        """Whether somebody holds the state that lies here."""
        return self._lent is not None and self._lent() is not None

    def lend(self) -> BlockState:
        """The state that lies here now."""
        place = None if self._lent is None else self._lent()
        if place is None:
            place = Place(self.state.place.memory, self)
            self._lent = weakref.ref(place)
        return self._state_at(place)

    def take_back(self, state: OrtState) -> None:
        """The state that was lent is not held by anybody but the caller, who reads it no more."""
        if isinstance(state, BlockState) and state.place.block is self:
            self._lent = None

    def holds(self, state: OrtState) -> bool:
        """Whether a state lies here."""
        here = self.state.place.memory
        return isinstance(state, BlockState) and state.place.memory is here

    def move_lent(self) -> None:
        """Have the state that was lent, if somebody holds it, leave before the block is written.

        Raises:
            SessionError: the GPU has no memory for it.
        """
        place = None if self._lent is None else self._lent()
        if place is not None:
            memory = self._allocate()
            self._gpu.copy(memory.address, place.memory.address, self.nbytes)
            place.memory, place.block = memory, None
        self._lent = None

    def queue_copy_of(self, state: OrtState) -> None:
        """Queue a copy of a state, which must be of this program and batch, into the block."""
        if self.holds(state):
            return
        if isinstance(state, BlockState):
            to, source = self.state.place.memory.address, state.place.memory.address
            self._gpu.queue_copy(to, source, self.nbytes)
            return
        for tensor, source_tensor in zip(self.state.tensors, state.tensors, strict=True):
            if tensor.nbytes:
                self._gpu.queue_copy(tensor.address, source_tensor.address, tensor.nbytes)

    def _allocate(self) -> DeviceTensor | DeviceMemory:
        if self.is_large:
            return self._gpu.device_memory(self.nbytes)
        return DeviceTensor.empty("uint8", (self.nbytes,), self._kind.device)

    def _state_at(self, place: Place) -> BlockState:
        offsets = itertools.accumulate((length for *_, length in self._layout), initial=0)
        tensors = [
            BlockTensor(place, offset, dtype, shape, self._kind)
            for offset, (dtype, shape, _) in zip(offsets, self._layout, strict=False)
        ]
        return BlockState(tensors, place, self._kind)


def gathered(kind: BlockKind, rows: Sequence[tuple[BlockState, int]]) -> BlockState:
    """A state of these sequences: each a state of the kind, which has batches, and its number there."""
    block = StateBlock(kind, len(rows))
    runs: list[tuple[BlockState, int, int]] = []  # of neighbours: the state, the first, how many
    for state, row in rows:
        if runs and runs[-1][0] is state and sum(runs[-1][1:]) == row:
            runs[-1] = (state, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((state, row, 1))
    with kind.gpu.lock:
        for index, to in enumerate(block.state.tensors):
            address, size = to.address, to.nbytes // len(rows)
            for state, first, count in runs:
                source = state.tensors[index].address + first * size
                if size:
                    kind.gpu.queue_copy(address, source, count * size)
                address += count * size
        kind.gpu.wait()
    return block.lend()


def _layout(metadata: Metadata, batch: int) -> list[tuple[str, tuple[int, ...], int]]:
    """Dtype, shape and bytes of each state of a block."""
    sizes = batch_sizes(metadata, batch)
    kinds = [(info.past.dtype, info.past.resolve(sizes)) for info in metadata.states]
    return [
        (dtype, shape, _aligned(math.prod(shape) * storage_dtype(dtype).itemsize))
        for dtype, shape in kinds
    ]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
