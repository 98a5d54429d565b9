"""``TrtState``: the states of a batch of sequences in TensorRT, on the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mamba_export.backends.tensorrt.cuda_driver import Gpu, Stream
from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES, dtype_name
from mamba_export.generation.state import alike, selection


class GpuTensor:
    """A tensor on a GPU.

    Attributes:
        dtype: its name, as in the metadata.
        shape: its sizes.
        address: of its first element, on the device.
        nbytes: its size.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], gpu: Gpu, stream: Stream) -> None:
        self.dtype = dtype
        self.shape = shape
        self.nbytes = int(np.prod(shape)) * NUMPY_DTYPES[dtype].itemsize
        self._memory = gpu.allocate(max(1, self.nbytes))  # what grows starts without elements
        self.address = self._memory.address
        self.gpu = gpu
        self._stream = stream

    @classmethod
    def zeros(cls, dtype: str, shape: tuple[int, ...], gpu: Gpu, stream: Stream) -> GpuTensor:
        """A tensor of zeros."""
        tensor = cls(dtype, shape, gpu, stream)
        stream.zero(tensor.address, tensor.nbytes)
        return tensor

    @classmethod
    def from_numpy(cls, array: np.ndarray, gpu: Gpu, stream: Stream) -> GpuTensor:
        """A copy of an array on the GPU; it is there when this returns."""
        name = dtype_name(array.dtype)
        if name not in NUMPY_DTYPES:
            raise SessionError(
                f"an array of {array.dtype} was given: use float32, float16 or ml_dtypes.bfloat16"
            )
        tensor = cls(name, array.shape, gpu, stream)
        if tensor.nbytes:
            stream.upload(tensor.address, np.ascontiguousarray(array))
            stream.synchronize()
        return tensor

    def empty(self, shape: tuple[int, ...]) -> GpuTensor:
        """Another tensor of its dtype, whose content is undefined."""
        return GpuTensor(self.dtype, shape, self.gpu, self._stream)

    def numpy(self) -> np.ndarray:
        """A copy in host memory."""
        self.gpu.activate()
        array = np.empty(self.shape, NUMPY_DTYPES[self.dtype])
        if self.nbytes:
            self._stream.download(array, self.address)
            self._stream.synchronize()
        return array


class TrtState:
    """What a batch of sequences has read so far, on the GPU. Never modified.

    Tensors are those of the metadata's ``states``, in its order; selecting and concatenating sequences copies
    within the GPU.
    """

    def __init__(self, tensors: Sequence[GpuTensor], stream: Stream) -> None:
        self.tensors = tuple(tensors)
        self.stream = stream

    @property
    def batch(self) -> int:
        """Number of sequences; 0 of an empty state."""
        return self.tensors[0].shape[0] if self.tensors else 0

    def numpy(self) -> list[np.ndarray]:
        """Copies of the tensors in host memory; bf16 as ``ml_dtypes.bfloat16``."""
        return [tensor.numpy() for tensor in self.tensors]

    def select(self, indices: Sequence[int]) -> TrtState:
        """A copy with these sequences, in this order; an index may occur more than once.

        Raises:
            SessionError: no index, or one outside [0, batch), or memory cannot be allocated.
        """
        rows = [(self, int(index)) for index in selection(indices, self.batch)]
        return _gather(rows, self.stream)

    @staticmethod
    def concatenate(states: Sequence[TrtState]) -> TrtState:
        """One state of all their sequences, in order.

        Raises:
            SessionError: no states, states of other backends, of different models, or that have grown to
                different lengths.
        """
        ours = alike(states, TrtState)
        rows = [(state, row) for state in ours for row in range(state.batch)]
        return _gather(rows, ours[0].stream)


def _gather(rows: list[tuple[TrtState, int]], stream: Stream) -> TrtState:
    tensors = []
    for index, pattern in enumerate(rows[0][0].tensors):
        pattern.gpu.activate()
        shape = (len(rows), *pattern.shape[1:])
        tensor = GpuTensor(pattern.dtype, shape, pattern.gpu, stream)
        row_bytes = tensor.nbytes // len(rows)
        for position, (state, row) in enumerate(rows if row_bytes else ()):
            source = state.tensors[index].address + row * row_bytes
            stream.copy(tensor.address + position * row_bytes, source, row_bytes)
        tensors.append(tensor)
    stream.synchronize()  # the sources may be freed or written to after this
    return TrtState(tensors, stream)
