"""What a user passes with a module of their own, checked before it is traced: arguments, states, dtypes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mamba_export import given
from mamba_export.errors import ExportError
from mamba_export.export.declare import State
from mamba_export.export.dtypes import NAMES
from mamba_export.fields import LARGEST_SIZE

Args = Tensor | Sequence[Any] | Mapping[str, Any]
"""Example arguments: a tensor, a sequence in forward's order, or a mapping by argument name."""


def bind(module: nn.Module, args: Args) -> dict[str, Tensor]:
    """Tensors by argument name, in forward's order.

    Raises:
        ExportError: they do not fit forward, are none, or one is no tensor or of another dtype.
    """
    signature = inspect.signature(module.forward)
    if not isinstance(args, (Tensor, Mapping)):
        expected = "a tensor, a sequence of tensors, or a mapping by argument"
        args = given.listed(args, "args", expected, ExportError)
    try:
        if isinstance(args, Mapping):
            bound = signature.bind(**{str(name): value for name, value in args.items()})
        else:
            bound = signature.bind(*((args,) if isinstance(args, Tensor) else args))
    except TypeError as error:
        raise ExportError(
            f"args do not fit {type(module).__name__}.forward{signature}: {error}"
        ) from error
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            arguments.update({f"{name}_{index}": part for index, part in enumerate(value)})
        elif signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        else:
            arguments[name] = value
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise ExportError(
                f"argument {name} is not a tensor ({type(value).__name__}): leave it out where it has a "
                "default, or wrap the module in one that fixes it"
            )
        if value.dtype not in NAMES:
            raise ExportError(
                f"argument {name} is of {value.dtype}: use one of {', '.join(NAMES.values())}"
            )
    if not arguments:
        raise ExportError("args are empty: a program needs at least one input")
    return arguments


def check_devices(module: nn.Module, arguments: Mapping[str, Tensor]) -> None:
    """Raise ExportError unless parameters, buffers and arguments are on one device that holds values."""
    first: dict[torch.device, str] = {}
    for name, tensor in (
        *module.named_parameters(),
        *module.named_buffers(),
        *((f"argument {name}", tensor) for name, tensor in arguments.items()),
    ):
        if tensor.dim() or tensor.device.type != "cpu":  # a number on the CPU goes with any device
            first.setdefault(tensor.device, name)
    if len(first) > 1:
        named = ", ".join(f"{name} is on {device}" for device, name in first.items())
        raise ExportError(
            f"the module and its arguments are on several devices ({named}): move them to one, as with .cpu()"
        )
    for device, name in first.items():
        if device.type == "meta":
            raise ExportError(f"{name} is on the meta device, which holds no values: load them")


def check_states(states: Sequence[State], arguments: Mapping[str, Tensor]) -> None:
    """Raise ExportError unless each state is an argument of its own, and some argument is no state."""
    if not isinstance(states, Sequence):
        raise ExportError(f"states is {given.shown(states)}: give a list of mamba_export.State")
    for state in states:
        _check_declared(state)
    names = [state.argument for state in states]
    for state in states:
        if state.argument not in arguments:
            raise ExportError(
                f"states name {state.argument}, and the arguments are {', '.join(arguments)}"
            )
        if names.count(state.argument) > 1:
            raise ExportError(f"states name the argument {state.argument} twice")
        dims = arguments[state.argument].dim()
        if state.grows is not None and not 0 < state.grows < dims:
            raise ExportError(
                f"state {state.argument} grows along axis {state.grows}: its axes are 0, which is the batch, "
                f"to {dims - 1}"
            )
    if len(names) == len(arguments):
        raise ExportError("every argument is a state: a program needs at least one input")


def _check_declared(state: Any) -> None:
    """Raise ExportError unless this is a State with fields of the right types."""
    if not isinstance(state, State):
        raise ExportError(f"states holds {given.shown(state)}: give mamba_export.State(...)")
    where = f"state {state.argument}"
    if not isinstance(state.argument, str):
        raise ExportError(f"a state's argument is {given.shown(state.argument)}: give its name")
    if state.name is not None and not isinstance(state.name, str):
        raise ExportError(f"{where}: name is {given.shown(state.name)}, expected a text")
    given.number(
        state.start, f"{where}: start", "a finite number", -math.inf, math.inf, ExportError
    )
    if state.grows is not None and type(state.grows) is not int:
        raise ExportError(f"{where}: grows is {given.shown(state.grows)}, expected an integer")
    if state.longest is not None:
        given.integer(state.longest, f"{where}: longest", 1, LARGEST_SIZE, ExportError)
        if state.grows is None:
            raise ExportError(f"{where}: longest is of a state that grows: say along which axis")
    if type(state.result) not in (int, str):
        raise ExportError(
            f"{where}: result is {given.shown(state.result)}, expected a result's position or name"
        )


def module_dtype(module: nn.Module) -> str:
    """The dtype of the matrices: fp16 or bf16 where there is any, else fp32."""
    first: dict[torch.dtype, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            first.setdefault(tensor.dtype, name)
    for dtype, name in first.items():
        if dtype not in NAMES:
            raise ExportError(
                f"{name} is of {dtype}: cast the module first, as with module.float()"
            )
    low = [dtype for dtype in first if dtype != torch.float32]
    if len(low) > 1:
        named = " and ".join(f"{first[dtype]} is {NAMES[dtype]}" for dtype in low)
        raise ExportError(f"the module mixes 16-bit dtypes ({named}): cast it to one of them")
    return NAMES[low[0]] if low else "fp32"
