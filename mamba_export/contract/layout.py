"""How the compiled kernels see an operator: the fields of its parameter struct, by one rule.

The rule: the sizes but for products; the dtypes; the attributes; whether weights are constants; the strided
inputs; the other inputs; the outputs. Each group keeps the row's order. The C header, the C++ that fills a
struct from a node, and the Python that packs one for a call all follow it. Imports nothing of ours but names
and the rows' types.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mamba_export.contract.names import DTYPES
from mamba_export.contract.spec import FP32, Operator, R, S, T, Tensor

INTERFACE_VERSION = 6
"""Version of the kernels' C interface. It rises when a struct or the meaning of a field changes."""

INT64 = "int64"  # int64_t: a size
DTYPE = "dtype"  # mamba_dtype: index into contract.DTYPES
INT = "int"  # int: a flag, 0 or 1
FLOAT = "float"  # float
SEQUENCE = "sequence"  # mamba_sequence: data, batch stride, step stride; data is null where an input is absent
INPUT = "input"  # const void*, or const float* for class FP32
OUTPUT = "output"  # void*, or float* for class FP32
"""Kinds of fields."""

_CODES = {
    INT64: "q",
    DTYPE: "i",
    INT: "i",
    FLOAT: "f",
    SEQUENCE: "Pqq",
    INPUT: "P",
    OUTPUT: "P",
}


@dataclass(frozen=True)
class Field:
    """A field of a parameter struct.

    Args:
        name: in C, and of the size, attribute or tensor that it holds.
        kind: INT64, DTYPE, INT, FLOAT, SEQUENCE, INPUT or OUTPUT.
        tensor: of the last three kinds, the row's tensor.
    """

    name: str
    kind: str
    tensor: Tensor | None = None


def fields(op: Operator) -> tuple[Field, ...]:
    """The fields of ``<stem>_params``, in order.

    Attributes that are derived from sizes have no field; the dtype of a class R or S is in
    ``<tensor>_dtype`` (the first input of the class names it).
    """
    flags = {"flag": INT, "float": FLOAT}
    chosen = (dtype_field(op, one) for one in (R, S))
    return (
        *(Field(size.name, INT64) for size in op.free_sizes),
        Field("dtype", DTYPE),
        *(Field(name, DTYPE) for name in chosen if name is not None),
        *(Field(one.name, flags[one.kind]) for one in op.attributes if not one.derived),
        *((Field("constant_weights", INT),) if op.constant_weights else ()),
        *(Field(tensor.name, SEQUENCE, tensor) for tensor in op.inputs if tensor.strided),
        *(Field(tensor.name, INPUT, tensor) for tensor in op.inputs if not tensor.strided),
        *(Field(tensor.name, OUTPUT, tensor) for tensor in op.outputs),
    )


def dtype_field(op: Operator, dtype_class: str) -> str | None:
    """Name of the field that has the dtype of a class R or S; None where no input is of the class."""
    return next((f"{one.name}_dtype" for one in op.inputs if one.dtype == dtype_class), None)


def stem(op: Operator) -> str:
    """What the C names of an operator's struct and kernels begin with: ``mamba_selective_scan``."""
    name = op.torch_name
    return name if name.startswith("mamba") else f"mamba_{name}"


UNPACKED = "layer"
BLOCKS = "blocks"
"""Of the struct of a packed form: the field that is the struct of the operator; of a mamba_codes: blocks along
the depth, whose size is ``packed_input(weight, BLOCKS)``."""


def packed_stem(op: Operator) -> str:
    """What the C names of the struct and the kernels of an operator's packed forms begin with."""
    return f"{stem(op)}_packed"


def packer(op: Operator) -> struct.Struct:
    """What packs a struct's numbers, those of a sequence in line, into bytes of its C layout."""
    return struct.Struct("@" + "".join(_CODES[field.kind] for field in fields(op)))


_NOWHERE = 256
"""An aligned address that nothing reads: where a question about sizes has its tensors."""


def pack_question(
    op: Operator,
    sizes: Mapping[str, int],
    dtypes: Mapping[str, str],
    attributes: Mapping[str, float],
    absent: Collection[str] = (),
) -> bytes:
    """The struct of a call whose tensors are dense and lie nowhere, for functions that read no tensor.

    Args:
        op: the row.
        sizes: numbers of the free sizes.
        dtypes: by class, T, R and S, the dtype's name.
        attributes: their values.
        absent: names of optional inputs that are not there.
    """
    numbers: list[float] = []
    every = op.with_products(sizes)
    for field in fields(op):
        here = 0 if field.name in absent else _NOWHERE
        if field.kind == INT64:
            numbers.append(sizes[field.name])
        elif field.kind == DTYPE:
            named = T if field.name == DTYPE else op.tensor(field.name.removesuffix("_dtype")).dtype
            numbers.append(DTYPES.index(dtypes[named]))
        elif field.kind in (INT, FLOAT):
            kind = int if field.kind == INT else float
            numbers.append(kind(attributes.get(field.name, 0)))
        elif field.kind == SEQUENCE:
            assert field.tensor is not None
            _, length, *rest = field.tensor.shape(every)
            width = math.prod(rest)
            numbers += (here, length * width, width)
        else:
            numbers.append(here)
    return packer(op).pack(*numbers)


def c_type(field: Field) -> str:
    """A field's type in C, with the star of a pointer."""
    if field.kind in (INPUT, OUTPUT):
        assert field.tensor is not None
        element = "float" if field.tensor.dtype == FP32 else "void"
        return f"{'const ' if field.kind == INPUT else ''}{element}*"
    return {INT64: "int64_t", DTYPE: "mamba_dtype", SEQUENCE: "mamba_sequence"}.get(
        field.kind, field.kind
    )


def size_sources(op: Operator) -> dict[str, tuple[int, int]]:
    """Where each size that is no product is read from: (index of an input, its axis).

    The first input that is always there and has the size alone as an axis.

    Raises:
        ValueError: a size that no such axis gives.
    """
    found: dict[str, tuple[int, int]] = {}
    for index, tensor in enumerate(op.inputs):
        for position, axis in enumerate(tensor.axes):
            if not tensor.is_optional and axis.constant == 0 and len(axis.terms) == 1:
                name, factor = axis.terms[0]
                if factor == 1:
                    found.setdefault(name, (index, position))
    missing = [size.name for size in op.free_sizes if size.name not in found]
    if missing:
        raise ValueError(f"{op.name}: no input has an axis that is the size {missing[0]} alone")
    return {size.name: found[size.name] for size in op.free_sizes}


def sizes_of(op: Operator, tensors: Sequence[Any]) -> dict[str, Any]:
    """The number of every size, from the shapes of a call's inputs in the row's order."""
    sources = size_sources(op)
    return op.with_products(
        {name: tensors[index].shape[axis] for name, (index, axis) in sources.items()}
    )


def dtype_source(op: Operator, dtype_class: str = T) -> int:
    """Index of the first input of a dtype class: the others follow its dtype.

    Raises:
        ValueError: there is none.
    """
    for index, tensor in enumerate(op.inputs):
        if tensor.dtype == dtype_class and tensor.without is None:
            return index
    raise ValueError(f"{op.name} has no input of dtype class {dtype_class}")
