"""What a node of TensorRT has, straight from the contract: its fields, and its tensors' shapes and types."""

from __future__ import annotations

import struct
from typing import Any

from tensorrt_harness import driver
from tensorrt_harness.driver import Field, Tensor

from mamba_export import contract
from mamba_export.backends.tensorrt.plugin import OPERATORS
from mamba_export.contract import spec
from mamba_export.contract.operators import GATED_RMS_NORM
from mamba_export.verify.cases import definition_of

FORMS = {op: definition_of(op) for op in OPERATORS}
SIGNATURES = {
    op: (
        tuple(row.name for row in form.inputs),
        tuple(row.name for row in definition.spec.outputs),
    )
    for op, (definition, form) in FORMS.items()
}
CLASSES = {
    op: {row.name: row.dtype for row in (*form.inputs, *definition.spec.outputs)}
    for op, (definition, form) in FORMS.items()
}
"""Dtype class of each tensor of a node."""

T_TYPES = tuple(driver.TYPES.values())
DYNAMIC = {"batch": -1, "length": -1}
VERSION = Field("contract_version", contract.CONTRACT_VERSION)
SIZES = {
    "batch": 2, "length": 65, "d_inner": 8, "channels": 8, "d_state": 16, "n_groups": 2, "d_conv": 4,
    "heads": 8, "head_dim": 4, "d_skip": 2, "groups": 2, "group_width": 12,
}  # fmt: skip
"""Other sizes than one another's, but for those that share an axis of the tests: one width of all operators."""

WIDTHS = {
    contract.SELECTIVE_SCAN.name: "d_inner",
    contract.CAUSAL_CONV1D.name: "channels",
    contract.STATE_SPACE_DUAL.name: "heads",
    GATED_RMS_NORM.name: "group_width",
}


def width_of(op: str) -> str:
    """Name of an operator's size that tests make wide."""
    return WIDTHS[FORMS[op][0].spec.name]


def attributes_of(op: str) -> tuple[spec.Attribute, ...]:
    return tuple(one for one in FORMS[op][0].spec.node_attributes if not one.derived)


def flags_of(op: str) -> list[str]:
    return [one.name for one in attributes_of(op) if one.kind == "flag"]


def type_of(attribute: spec.Attribute) -> int:
    return driver.FIELD_INT32 if attribute.kind == "flag" else driver.FIELD_FLOAT32


def fields(op: str, **values: int) -> list[Field]:
    """In the contract's order; a float as fp32 holds it."""
    made = []
    for one in attributes_of(op):
        value: Any = values.get(one.name, one.default)
        value = int(value) if one.kind == "flag" else struct.unpack("f", struct.pack("f", value))[0]
        made.append(Field(one.name, value, type_of(one)))
    return made


def text_of(op: str, **values: int) -> str:
    """What a plugin says of its fields."""
    words = [f"contract_version={contract.CONTRACT_VERSION}"]
    for field in fields(op, **values):
        is_float = field.type == driver.FIELD_FLOAT32
        words.append(f"{field.name}={field.value:f}" if is_float else f"{field.name}={field.value}")
    return " ".join(words)


def right_types(op: str, name: str, T: int, R: int) -> tuple[int, ...]:
    """The type of a tensor where T and the classes beside it have these."""
    return ({spec.T: T, spec.FP32: driver.FLOAT}.get(CLASSES[op][name], R),)


def described(
    op: str, T: int = driver.FLOAT, R: int = driver.FLOAT, **sizes: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of a node. R: type of the classes that are fp32 or T."""
    numbers = {**SIZES, **sizes}

    def tensor(row: spec.Tensor) -> Tensor:
        shape = tuple(
            -1 if any(numbers[name] < 0 for name, _ in axis.terms) else axis.resolve(numbers)
            for axis in row.axes
        )
        return Tensor(shape, right_types(op, row.name, T, R)[0])

    definition, form = FORMS[op]
    return [tensor(row) for row in form.inputs], [tensor(row) for row in definition.spec.outputs]


def types_of_nodes(op: str) -> list[tuple[int, int]]:
    """Every choice of T and of the classes beside it that a node may have."""
    beside = any(one in (spec.R, spec.S) for one in CLASSES[op].values())
    return [
        (T, R)
        for T in T_TYPES
        for R in dict.fromkeys((driver.FLOAT, T) if beside else (driver.FLOAT,))
    ]


def names(op: str) -> list[str]:
    """Of a node's tensors, by position."""
    return [*SIGNATURES[op][0], *SIGNATURES[op][1]]
