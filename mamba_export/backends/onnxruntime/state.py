"""``OrtState``: the states of a batch of sequences in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mamba_export import given
from mamba_export.backends.onnxruntime.device import Device, DeviceTensor
from mamba_export.errors import SessionError
from mamba_export.generation.state import alike, selection, state_arrays

CPU = Device()


class OrtState:
    """What a batch of sequences has read so far, on the session's device. Never modified.

    Tensors are those of the metadata's ``states``, in its order: of a Mamba model convolution state (batch,
    channels, d_conv - 1) in the file's dtype and recurrent state (batch, d_inner, d_state) fp32 of layer 0,
    then of layer 1, and so on. A program without states has an empty one. Selecting and concatenating
    sequences goes through host memory, but for those of a ``BlockState``.
    """

    def __init__(self, tensors: Sequence[DeviceTensor]) -> None:
        self.tensors = tuple(tensors)

    @property
    def batch(self) -> int:
        """Number of sequences; 0 of an empty state."""
        return self.tensors[0].shape[0] if self.tensors else 0

    def numpy(self) -> list[np.ndarray]:
        """Copies of the tensors in host memory; bf16 as ``ml_dtypes.bfloat16``."""
        return [tensor.numpy() for tensor in self.tensors]

    @classmethod
    def from_numpy(cls, arrays: Sequence[np.ndarray], device: Device = CPU) -> OrtState:
        """A state from what ``numpy()`` returned; the arrays are copied.

        Args:
            arrays: one a state tensor, in order.
            device: ``session.device`` of the session that is to take it.

        Raises:
            SessionError: no arrays, an array without a batch, or of a dtype that no state has. Whether
                the state fits a model is checked by ``run``.
        """
        arrays = state_arrays(arrays)
        if not isinstance(device, Device):
            raise SessionError(f"device is {given.shown(device)}: give session.device")
        if not arrays or any(array.ndim == 0 for array in arrays):
            raise SessionError("a state needs arrays of at least one dimension, the batch")
        return cls([DeviceTensor.from_numpy(array, device) for array in arrays])

    def select(self, indices: Sequence[int]) -> OrtState:
        """A copy with these sequences, in this order; an index may occur more than once.

        Raises:
            SessionError: no index, or one outside [0, batch).
        """
        rows = selection(indices, self.batch)
        return OrtState([tensor.select(rows) for tensor in self.tensors])

    @staticmethod
    def concatenate(states: Sequence[OrtState]) -> OrtState:
        """One state of all their sequences, in order.

        Raises:
            SessionError: no states, states of different models, or that have grown to different lengths.
        """
        states = alike(states, OrtState)
        if not states[0].tensors:
            return states[0]
        device = states[0].tensors[0].device
        columns = zip(*(state.numpy() for state in states), strict=True)
        return OrtState.from_numpy([np.concatenate(column) for column in columns], device)
