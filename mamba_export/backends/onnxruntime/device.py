"""Tensors on the device of an ONNX Runtime session.

ONNX Runtime's Python API knows no bf16 in numpy: such tensors are stored as their bits (uint16) and bound
to the graph by address with bf16's type number. Every dtype is bound by address, so there is one path.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES, dtype_name

_ONNX_BFLOAT16 = 16  # TensorProto.BFLOAT16


def storage_dtype(name: str) -> np.dtype[Any]:
    """Dtype that ONNX Runtime's Python API stores a tensor of this name as."""
    return np.dtype(np.uint16) if name == "bf16" else NUMPY_DTYPES[name]


def element_type(name: str) -> Any:
    """Element type to bind a tensor of this dtype with."""
    return _ONNX_BFLOAT16 if name == "bf16" else NUMPY_DTYPES[name].type


@dataclass(frozen=True)
class Device:
    """Where a session keeps its tensors: ONNX Runtime's name for it ("cpu", "cuda"), and which one."""

    name: str = "cpu"
    index: int = 0


@contextlib.contextmanager
def _allocating(dtype: str, shape: tuple[int, ...], device: Device) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        size = math.prod(shape) * storage_dtype(dtype).itemsize
        raise SessionError(
            f"out of memory on {device.name}: failed to allocate {size:,} bytes for a tensor of shape {shape}: "
            "use a smaller batch"
        ) from error


class DeviceTensor:
    """A tensor on a device.

    Attributes:
        dtype: its name, as in the metadata.
        shape: its sizes.
        device: where it lies.
    """

    __slots__ = ("_address", "_value", "device", "dtype", "shape")

    def __init__(
        self, value: ort.OrtValue, dtype: str, shape: tuple[int, ...], device: Device
    ) -> None:
        self._value = value  # owns the memory
        self._address: int = value.data_ptr()
        self.dtype = dtype
        self.shape = shape
        self.device = device

    @classmethod
    def empty(cls, dtype: str, shape: tuple[int, ...], device: Device) -> DeviceTensor:
        """A tensor whose content is undefined.

        Raises:
            SessionError: the device has no memory for it.
        """
        with _allocating(dtype, shape, device):
            # Something is allocated for a tensor without elements too, so that it has an address to bind.
            value = ort.OrtValue.ortvalue_from_shape_and_type(
                list(shape) if math.prod(shape) else [1],
                storage_dtype(dtype).type,
                device.name,
                device.index,
            )
        return cls(value, dtype, shape, device)

    @classmethod
    def adopt(cls, value: ort.OrtValue, dtype: str, device: Device) -> DeviceTensor:
        """A tensor that ONNX Runtime allocated on the device."""
        shape = tuple(value.shape())
        if math.prod(shape) == 0:
            return cls.empty(dtype, shape, device)
        return cls(value, dtype, shape, device)

    @classmethod
    def from_numpy(cls, array: np.ndarray, device: Device) -> DeviceTensor:
        """A copy of an array on the device.

        Raises:
            SessionError: no program has tensors of the array's dtype, or the device has no memory for it.
        """
        dtype = dtype_name(array.dtype)
        if dtype not in NUMPY_DTYPES:
            raise SessionError(
                f"an array of {array.dtype} was given: use float32, float16 or ml_dtypes.bfloat16"
            )
        if array.size == 0:
            return cls.empty(dtype, array.shape, device)
        with _allocating(dtype, array.shape, device):
            # On the CPU an OrtValue shares the array's memory, so it gets one of its own.
            stored = np.array(array, order="C").view(storage_dtype(dtype))
            value = ort.OrtValue.ortvalue_from_numpy(stored, device.name, device.index)
        return cls(value, dtype, array.shape, device)

    @property
    def address(self) -> int:
        """Of its first element, on its device."""
        return self._address

    @property
    def nbytes(self) -> int:
        """Size of its content in bytes."""
        return math.prod(self.shape) * storage_dtype(self.dtype).itemsize

    def start(self, shape: tuple[int, ...]) -> DeviceTensor:
        """The first elements of its memory as a tensor of a shape of its own."""
        return DeviceTensor(self._value, self.dtype, shape, self.device)

    def numpy(self) -> np.ndarray:
        """A copy in host memory."""
        return np.array(self._host()).view(NUMPY_DTYPES[self.dtype])

    def select(self, rows: np.ndarray) -> DeviceTensor:
        """A copy with these rows of the first dimension."""
        host = self._host()[rows].view(NUMPY_DTYPES[self.dtype])
        return DeviceTensor.from_numpy(host, self.device)

    def _host(self) -> np.ndarray:
        """Its content in host memory, as it is stored; perhaps no copy."""
        stored = storage_dtype(self.dtype)
        if math.prod(self.shape) == 0:
            return np.empty(self.shape, stored)
        if self._value.data_type() != "tensor(bfloat16)":  # every one that we allocated
            return self._value.numpy()
        if self.device.name != "cpu":
            raise SessionError(
                "ONNX Runtime cannot copy a bf16 tensor that it allocated to the host: export with --dtype fp16"
            )
        content = ctypes.string_at(self.address, math.prod(self.shape) * stored.itemsize)
        return np.frombuffer(content, stored).reshape(self.shape)
