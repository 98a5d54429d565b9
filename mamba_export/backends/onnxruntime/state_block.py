"""The states of a batch in one piece of a GPU's memory, so that one copy moves them all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from mamba_export.backends.onnxruntime.cuda_stream import GpuStream
from mamba_export.backends.onnxruntime.device import Device, DeviceTensor, storage_dtype
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.folder.metadata import Metadata
from mamba_export.generation.state import batch_sizes

_ALIGNMENT = 256  # bytes, as CUDA's own allocations have it


class BlockTensor(DeviceTensor):
    """A state that lies in a block; it keeps the block's memory."""

    __slots__ = ("_gpu", "_memory")

    def __init__(
        self, memory: DeviceTensor, offset: int, dtype: str, shape: tuple[int, ...], gpu: GpuStream
    ) -> None:
        self._memory = memory
        self.address = memory.address + offset
        self.dtype = dtype
        self.shape = shape
        self.device = memory.device
        self._gpu = gpu

    def _host(self) -> np.ndarray:
        stored = np.empty(self.shape, storage_dtype(self.dtype))
        if stored.nbytes:
            with self._gpu.lock:
                self._gpu.copy(stored.ctypes.data, self.address, stored.nbytes)
        return stored


class BlockState(OrtState):
    """A state whose tensors are those of a block, in order; it fits the program by its making."""

    def __init__(
        self, tensors: Sequence[BlockTensor], memory: DeviceTensor, metadata: Metadata
    ) -> None:
        super().__init__(tensors)
        self.memory = memory
        self.metadata = metadata


class StateBlock:
    """Memory for every state of a batch; its content is undefined at first.

    Args:
        metadata: of a program whose states are of fixed size.
        batch: number of sequences.
        device: of the GPU.
        gpu: its stream, on which the block is read and written.

    Attributes:
        state: the block's tensors.
        nbytes: of the whole.

    Raises:
        SessionError: the GPU has no memory for it.
    """

    def __init__(self, metadata: Metadata, batch: int, device: Device, gpu: GpuStream) -> None:
        self._gpu = gpu
        sizes = batch_sizes(metadata, batch)
        kinds = [(info.past.dtype, info.past.resolve(sizes)) for info in metadata.states]
        lengths = [
            -(-math.prod(shape) * storage_dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
            for dtype, shape in kinds
        ]
        *offsets, self.nbytes = itertools.accumulate(lengths, initial=0)
        memory = DeviceTensor.empty("uint8", (self.nbytes,), device)
        tensors = [
            BlockTensor(memory, offset, dtype, shape, gpu)
            for offset, (dtype, shape) in zip(offsets, kinds, strict=True)
        ]
        self.state = BlockState(tensors, memory, metadata)

    def queue_copy_of(self, state: OrtState) -> None:
        """Queue a copy of a state, which must be of this program and batch, into the block."""
        if isinstance(state, BlockState):
            self._gpu.queue_copy(self.state.memory.address, state.memory.address, self.nbytes)
            return
        for to, tensor in zip(self.state.tensors, state.tensors, strict=True):
            if tensor.nbytes:
                self._gpu.queue_copy(to.address, tensor.address, tensor.nbytes)
