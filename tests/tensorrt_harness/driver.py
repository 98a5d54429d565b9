"""The plugin library as TensorRT drives it, with the harness in TensorRT's place: classes over ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mamba_export.libraries import TRT_PLUGIN, installed

HARNESS_VARIABLE = "MAMBA_TRT_HARNESS"
"""Environment variable: path of the harness to use instead of the installed one."""

BUILD, RUNTIME = 0, 1
FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4, FP4 = range(11)
"""Values of nvinfer1::DataType."""
TYPES = {"fp32": FLOAT, "fp16": HALF, "bf16": BF16}
LINEAR = 0
FIELD_FLOAT32, FIELD_INT32, FIELD_CHAR, FIELD_INT64 = 1, 5, 6, 10
"""Values of nvinfer1::PluginFieldType."""


def harness_path() -> Path | None:
    """The harness that the environment names, or the installed one; None where there is neither."""
    setting = os.environ.get(HARNESS_VARIABLE)
    return Path(setting) if setting else installed("libmamba_trt_harness.so")


def rtx_core() -> Path | None:
    """TensorRT-RTX's library in its wheel, or None.

    The wheel is not imported: that would load the library, and keep the product from giving it the name
    that its parser looks for.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("libtensorrt_rtx.so*"), None)


RTX_ABSENT = "tensorrt-rtx-cu13 is not installed"


NOT_BUILT = (
    "the TensorRT plugins or their harness are not built "
    "(nvcc, TensorRT's headers and -DMAMBA_TEST_PROGRAMS=ON build them)"
)


def is_built() -> bool:
    """Whether there is a plugin library and a harness to drive it."""
    return TRT_PLUGIN.path() is not None and harness_path() is not None


class CTensor(ctypes.Structure):
    _fields_ = (
        ("rank", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * 8),
        ("type", ctypes.c_int32),
        ("format", ctypes.c_int32),
    )


class CField(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
        ("data", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Tensor:
    """Shape, type and format of a tensor; a size of -1 is not known while building.

    rank: of a tensor that lies about its number of axes.
    """

    shape: tuple[int, ...]
    type: int = FLOAT
    format: int = LINEAR
    rank: int | None = None


@dataclass(frozen=True)
class Field:
    """A field that TensorRT passes to a creator, or that a plugin writes into an engine."""

    name: str
    value: Any
    type: int = FIELD_INT32
    length: int = 1


def tensors(values: Sequence[Tensor]) -> Any:
    array = (CTensor * max(1, len(values)))()
    for place, value in zip(array, values, strict=False):
        place.rank = len(value.shape) if value.rank is None else value.rank
        place.type, place.format = value.type, value.format
        place.sizes[: len(value.shape)] = value.shape
    return array


def pointers(values: Sequence[int]) -> Any:
    return (ctypes.c_void_p * len(values))(*values)


_VALUES = {
    FIELD_INT32: ctypes.c_int32,
    FIELD_INT64: ctypes.c_int64,
    FIELD_FLOAT32: ctypes.c_float,
    FIELD_CHAR: ctypes.c_char,
}


class Harness:
    """The harness library with one plugin library open in it.

    Args:
        harness: path of libmamba_trt_harness.so.
        plugin: path of libmamba_export_trt.so.
        major: major version of the TensorRT to play: decides how its logger is laid out; 0 for no logger.
    """

    def __init__(self, harness: Path, plugin: Path, major: int = 10) -> None:
        self.c = ctypes.CDLL(str(harness))
        for name in ("open", "create", "clone", "attach", "reload"):
            self._function(name).restype = ctypes.c_void_p
        for name in ("log", "creator_text", "plugin_text"):
            self._function(name).restype = ctypes.c_char_p
        self._function("workspace").restype = ctypes.c_size_t
        self.handle = ctypes.c_void_p(self.c.harness_open(str(plugin).encode(), major))
        if not self.handle:
            raise OSError(self.log())
        count = self.c.harness_creator_count(self.handle)
        self.names = [self.creator_text(i, 0) for i in range(count)]

    def _function(self, name: str) -> Any:
        return getattr(self.c, f"harness_{name}")

    def log(self) -> str:
        """What plugins logged since the last call."""
        return self.c.harness_log().decode()

    def creator_text(self, index: int, part: int) -> str:
        return self.c.harness_creator_text(self.handle, index, part).decode()

    def creator_fields(self, index: int) -> list[tuple[str, int]]:
        array = (CField * 8)()
        count = self.c.harness_creator_fields(self.handle, index, array, 8)
        return [(field.name.decode(), field.type) for field in array[:count]]

    def create(
        self, op: str, fields: Sequence[Field] | None, phase: int = BUILD, layer: str = "a layer"
    ) -> Plugin | None:
        """A plugin made of these fields; None where it is refused."""
        array = (CField * 8)()
        keep = []
        for place, field in zip(array, fields or (), strict=False):
            data = None
            if field.value is not None:
                data = _VALUES[field.type](field.value)
                keep.append(data)
            place.name, place.type, place.length = field.name.encode(), field.type, field.length
            place.data = None if data is None else ctypes.addressof(data)
        count = -1 if fields is None else len(fields)
        made = self.c.harness_create(
            self.handle, self.names.index(op), layer.encode(), array, count, phase
        )
        return Plugin(self, made) if made else None


class Plugin:
    """One plugin object."""

    def __init__(self, harness: Harness, handle: int) -> None:
        self._harness, self._c, self.handle = harness, harness.c, ctypes.c_void_p(handle)

    def __del__(self) -> None:
        self._c.harness_destroy(self.handle)

    def _made(self, handle: int | None) -> Plugin | None:
        return Plugin(self._harness, handle) if handle else None

    def clone(self) -> Plugin | None:
        return self._made(self._c.harness_clone(self.handle))

    def attach(self) -> Plugin | None:
        return self._made(self._c.harness_attach(self.handle))

    def reload(self) -> Plugin | None:
        """What comes back of it out of an engine."""
        return self._made(self._c.harness_reload(self._harness.handle, self.handle))

    def text(self, part: int) -> str:
        return self._c.harness_plugin_text(self.handle, part).decode()

    def fields(self) -> list[Field]:
        """What it writes into an engine."""
        array = (CField * 8)()
        count = self._c.harness_plugin_fields(self.handle, array, 8)
        return [
            Field(
                field.name.decode(),
                ctypes.cast(field.data, ctypes.POINTER(_VALUES[field.type]))[0],
                field.type,
                field.length,
            )
            for field in array[:count]
        ]

    def supports(self, position: int, both: Sequence[Tensor], inputs: int) -> bool:
        count = len(both) - inputs
        return bool(self._c.harness_supports(self.handle, position, tensors(both), inputs, count))

    def output_types(self, inputs: Sequence[Tensor]) -> list[int] | None:
        types = (ctypes.c_int32 * 2)(-1, -1)
        if self._c.harness_output_types(self.handle, tensors(inputs), len(inputs), types):
            return None
        return [kind for kind in types if kind >= 0]

    def output_shapes(self, inputs: Sequence[Tensor]) -> list[tuple[int, ...]] | None:
        """Shapes of the outputs; -1 - k for the k-th dynamic size among the inputs."""
        shapes = (CTensor * 2)()
        for shape in shapes:
            shape.rank = -1
        if self._c.harness_output_shapes(self.handle, tensors(inputs), len(inputs), shapes):
            return None
        return [tuple(shape.sizes[: shape.rank]) for shape in shapes if shape.rank >= 0]

    def configure(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        return self._c.harness_configure(
            self.handle, tensors(inputs), len(inputs), tensors(outputs)
        )

    def workspace(self, largest: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        return self._c.harness_workspace(
            self.handle, tensors(largest), len(largest), tensors(outputs)
        )

    def shape_change(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        return self._c.harness_shape_change(
            self.handle, tensors(inputs), len(inputs), tensors(outputs)
        )

    def enqueue(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        input_data: Sequence[int],
        output_data: Sequence[int],
        workspace: int = 0,
        stream: int = 0,
    ) -> int:
        """Data are addresses on the device."""
        return self._c.harness_enqueue(
            self.handle,
            tensors(inputs),
            tensors(outputs),
            len(inputs),
            pointers(input_data),
            pointers(output_data),
            ctypes.c_void_p(workspace),
            ctypes.c_void_p(stream),
        )
