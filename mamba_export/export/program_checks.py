"""A program that a user put together, checked before it is traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mamba_export import given
from mamba_export.contract.program import Program, State, Tokens, Value
from mamba_export.errors import ExportError
from mamba_export.export.dtypes import ONNX


def check_program(program: Program) -> None:
    """Raise ExportError, naming the field, unless a program's fields are of their types and in their ranges."""
    if not isinstance(program.module, nn.Module):
        raise ExportError(
            f"the program's module is {given.shown(program.module)}: give an nn.Module"
        )
    for what, values in (("inputs", program.inputs), ("outputs", program.outputs)):
        _check_all(what, values, Value)
        if not values:
            raise ExportError(f"the program has no {what}: it needs at least one")
        for value in values:
            _check_value(value)
    _check_all("states", program.states, State)
    for state in program.states:
        _check_value(state.past)
        _check_value(state.present)
    if program.tokens is not None and not isinstance(program.tokens, Tokens):
        raise ExportError(
            f"the program's tokens are {given.shown(program.tokens)}: give a Tokens, or None"
        )


def _check_all(what: str, values: Any, kind: type) -> None:
    if not isinstance(values, Sequence) or not all(isinstance(value, kind) for value in values):
        raise ExportError(
            f"the program's {what} are {given.shown(values)}: give a tuple of {kind.__name__}"
        )


def _check_value(value: Any) -> None:
    if not isinstance(value, Value):
        raise ExportError(f"a state of the program has {given.shown(value)}: give a Value")
    if not isinstance(value.name, str) or not value.name or not value.name.isprintable():
        raise ExportError(f"an input or output is named {given.shown(value.name)}: give a name")
    given.one_of(value.dtype, f"{value.name}: dtype", ONNX, ExportError)
    for size in given.listed(value.shape, f"{value.name}: shape", "a tuple of sizes", ExportError):
        if isinstance(size, str):
            if not size.isidentifier():
                raise ExportError(
                    f"{value.name}: axis {given.shown(size)} is no name: use letters, digits and _"
                )
        else:
            given.integer(size, f"{value.name}: size", 0, error=ExportError)
