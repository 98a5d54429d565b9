"""Memory on either device that ONNX Runtime reads and writes in place."""

from __future__ import annotations

from typing import Any

import numpy as np

# From where its telemetry is switched off before the import.
from mamba_export.backends.onnxruntime.providers import ort

_WRITTEN = 0.01
"""What floats start as: memory that was never written costs nothing, and reading it is too quick."""


class Buffer:
    """An array of fixed place.

    Args:
        shape, dtype: of the array.
        device: "cpu", or "cuda", where PyTorch allocates: it gives back what is released.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: str) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        self._array: Any
        start = _WRITTEN if dtype.kind == "f" else 0
        if device == "cpu":
            self._array = np.full(shape, start, dtype)
            self._pointer = self._array.ctypes.data
        else:
            import torch

            self._array = torch.full(shape, start, dtype=getattr(torch, dtype.name), device=device)
            torch.cuda.synchronize()
            self._pointer = self._array.data_ptr()

    def put(self, values: np.ndarray) -> None:
        """Copy values of its shape into it."""
        if self._device == "cpu":
            self._array[...] = values
        else:
            import torch

            self._array.copy_(torch.from_numpy(np.ascontiguousarray(values)))

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        found: np.ndarray = (
            self._array.copy() if self._device == "cpu" else self._array.cpu().numpy()
        )
        return found

    def bind_input(self, binding: ort.IOBinding, name: str) -> None:
        """Let a graph read it."""
        binding.bind_input(
            name, self._device, 0, self._dtype.type, list(self._shape), self._pointer
        )

    def bind_output(self, binding: ort.IOBinding, name: str) -> None:
        """Let a graph write it."""
        binding.bind_output(
            name, self._device, 0, self._dtype.type, list(self._shape), self._pointer
        )
