"""A user's own module as a program: arguments, results and states found by tracing it once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from mamba_export.contract.program import Program, Value
from mamba_export.contract.program import State as ProgramState
from mamba_export.errors import ExportError
from mamba_export.export import capture
from mamba_export.export.axes import DynamicShapes, axis_name, declared_axes, fitting_examples
from mamba_export.export.declare import State
from mamba_export.export.dtypes import NAMES
from mamba_export.models.program import SharedParameters

Args = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class TracedModule:
    """A module that has been traced.

    Args:
        program: of it.
        exported: the ``torch.export.ExportedProgram``.
        dtype: of its matrices: "fp32", "fp16" or "bf16".
        signature: how forward is called, for the metadata's ``source``; ``module_program`` reads it.
    """

    program: Program
    exported: Any
    dtype: str
    signature: dict[str, Any]


class _Results:
    """What a call found out; an object of its own, since PyTorch undoes what a traced module does to itself.

    Attributes:
        names: of the flat results; None before they are known.
        order: positions of the outputs, then of the presents, among the results.
    """

    def __init__(self, names: list[str] | None) -> None:
        self.names = names
        self.order: list[int] = []


class _Called(SharedParameters):
    """A module as a program has it: tensors in graph order in, outputs and then presents out.

    Args:
        module: what is called.
        arguments: names of forward's arguments, in graph order.
        results: names of the flat results; None to find them when it is called.
        states: of which the result is named or counted.
    """

    def __init__(
        self,
        module: nn.Module,
        arguments: Sequence[str],
        results: Sequence[str] | None,
        states: Sequence[State],
    ) -> None:
        super().__init__(module)
        self.arguments = list(arguments)
        self.states = list(states)
        self.found = _Results(None if results is None else list(results))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.arguments, tensors, strict=True))
        parameters = inspect.signature(self.wrapped.forward).parameters
        variable = [p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL]
        if variable:
            # Names of *tensors are "<name>_0" and so on; nothing can precede them by keyword.
            found = self.wrapped(*(given[name] for name in _positions(list(given), variable[0])))
        else:
            found = self.wrapped(**given)
        leaves = _leaves(found, self.found.names)
        names = list(leaves)
        if not self.found.order:
            presents = [_position(state, names) for state in self.states]
            for state, position in zip(self.states, presents, strict=True):
                if presents.count(position) > 1:
                    raise ExportError(
                        f"two states have the result {names[position]}, of {state.argument}"
                    )
            outputs = [index for index in range(len(names)) if index not in presents]
            if not outputs:
                raise ExportError("forward returns states alone: it needs at least one output")
            self.found.names, self.found.order = names, [*outputs, *presents]
        tensors = tuple(leaves.values())
        return tuple(tensors[index] for index in self.found.order)


def trace_module(
    module: nn.Module,
    args: Args,
    *,
    dynamic_shapes: DynamicShapes = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    states: Sequence[State] = (),
) -> TracedModule:
    """Trace a module of the user's own, and describe it as a program.

    Args:
        module: its forward takes tensors and returns tensors, possibly nested in tuples, lists and dicts.
        args: example arguments: a tensor, a sequence in forward's order, or a mapping by argument name.
        dynamic_shapes: see ``axes.declared_axes``; an axis that it leaves out has a fixed size.
        input_names: names in the file, in the order of args; None for those of the arguments.
        output_names: names in the file, in the order of the flat results; None for the keys of a dict, or
            "output", "output_0" and so on.
        states: arguments that results continue.

    Returns:
        The program, and PyTorch's graph of it.

    Raises:
        ExportError: what cannot be taken, in one line.
    """
    arguments = bind(module, args)
    _check_states(states, arguments)
    of_state = {state.argument: state for state in states}
    grows = {state.argument: state.grows for state in states if state.grows is not None}
    dtype = module_dtype(module)
    ordered = [name for name in arguments if name not in of_state] + list(of_state)
    graph_names = _input_names(list(arguments), input_names)
    axes = declared_axes(arguments, dynamic_shapes, grows)
    examples = dict(zip(arguments, fitting_examples(arguments, axes), strict=True))

    called = _Called(module, ordered, output_names, states)
    exported = capture.trace(
        called, [examples[name] for name in ordered], [axes[name] for name in ordered]
    )
    assert called.found.names is not None
    results = called.found.names
    if output_names is None:
        results = _result_names(results, called.found.order, states)
    clash = set(results) & set(graph_names.values())
    if clash:
        raise ExportError(
            f"{clash.pop()} is the name of an input and of a result: give output_names"
        )
    names = _symbols(exported, ordered, axes)
    values = []
    for name, shape in zip(ordered, capture.input_shapes(exported), strict=True):
        values.append(_value(graph_names[name], examples[name].dtype, shape, names))
    found = [
        _value(results[index], tensor.dtype, tuple(tensor.shape), names)
        for index, tensor in zip(called.found.order, capture.outputs(exported), strict=True)
    ]
    count = len(ordered) - len(of_state)
    outputs, presents = found[: len(found) - len(of_state)], found[len(found) - len(of_state) :]
    program = Program(
        called,
        tuple(values[:count]),
        tuple(outputs),
        tuple(
            _state(state, past, present)
            for state, past, present in zip(states, values[count:], presents, strict=True)
        ),
    )
    signature = {
        "arguments": ordered,
        "results": results,
        "presents": [program_state.present.name for program_state in program.states],
    }
    return TracedModule(program, exported, dtype, signature)


def module_program(
    module: nn.Module,
    signature: Mapping[str, Any],
    *,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    states: Sequence[ProgramState],
) -> Program:
    """The program of a module that was exported before, from what its folder's metadata says.

    Args:
        module: the one that was exported, in any dtype.
        signature: the metadata's ``source``.
        inputs, outputs, states: the metadata's.

    Raises:
        ExportError: the folder is not of a user's module.
    """
    try:
        arguments, results = list(signature["arguments"]), list(signature["results"])
        presents = list(signature["presents"])
    except KeyError:
        raise ExportError("the folder was not exported from a module with arguments") from None
    pasts = arguments[len(inputs) :]
    declared = [State(name, present) for name, present in zip(pasts, presents, strict=True)]
    called = _Called(module, arguments, results, declared)
    return Program(called, tuple(inputs), tuple(outputs), tuple(states))


def bind(module: nn.Module, args: Args) -> dict[str, Tensor]:
    """Tensors by argument name, in forward's order."""
    signature = inspect.signature(module.forward)
    try:
        if isinstance(args, Mapping):
            bound = signature.bind(**args)
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


def _check_states(states: Sequence[State], arguments: Mapping[str, Tensor]) -> None:
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


def _input_names(arguments: list[str], given: Sequence[str] | None) -> dict[str, str]:
    names = arguments if given is None else list(given)
    if len(names) != len(arguments) or len(set(names)) != len(names):
        raise ExportError(
            f"input_names needs {len(arguments)} different names, of {', '.join(arguments)}"
        )
    return dict(zip(arguments, names, strict=True))


def _leaves(found: Any, names: Sequence[str] | None) -> dict[str, Tensor]:
    """Flat results by name."""
    leaves = _pytree.tree_leaves(found)
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise ExportError(f"result {index} of forward is not a tensor ({type(leaf).__name__})")
    if names is None:
        flat = isinstance(found, Mapping) and all(isinstance(v, Tensor) for v in found.values())
        names = list(map(str, found)) if flat else list(map(_numbered, range(len(leaves))))
    if len(names) != len(leaves) or len(set(names)) != len(names):
        raise ExportError(
            f"output_names needs {len(leaves)} different names, one a result of forward"
        )
    return dict(zip(names, leaves, strict=True))


def _result_names(keys: list[str], order: list[int], states: Sequence[State]) -> list[str]:
    """Names of the flat results where the user has given none.

    Those of states are "present." and the state's name. The others are the keys of the dict that forward
    returns, or "output" where there is one, or "output_0" and so on.
    """
    count = len(order) - len(states)
    names = list(keys)
    for number, index in enumerate(order[:count]):
        if keys[index] == _numbered(index):
            names[index] = "output" if count == 1 else _numbered(number)
    for state, index in zip(states, order[count:], strict=True):
        names[index] = f"present.{state.name or state.argument}"
    return names


def _numbered(index: int) -> str:
    return f"output_{index}"


def _position(state: State, names: list[str]) -> int:
    if isinstance(state.result, int) and 0 <= state.result < len(names):
        return state.result
    if state.result in names:
        return names.index(str(state.result))
    raise ExportError(
        f"state {state.argument} is continued by result {state.result}: forward has {len(names)} results, "
        f"{', '.join(names)}"
    )


def _positions(given: list[str], variable: str) -> list[str]:
    """Argument names in the order in which forward takes them, those of ``*variable`` by their number."""

    def order(name: str) -> tuple[bool, int]:
        number = name.removeprefix(f"{variable}_")
        is_variable = number.isdigit() and name != number
        return is_variable, int(number) if is_variable else 0

    return sorted(given, key=order)


def _symbols(exported: Any, arguments: Sequence[str], axes: Mapping[str, Any]) -> dict[str, str]:
    """PyTorch's names of dynamic sizes, and the user's; axes with a Dim before those with a hint.

    Raises:
        ExportError: a Dim's axis was fixed by the module.
    """
    names: dict[str, str] = {}
    shapes = dict(zip(arguments, capture.input_shapes(exported), strict=True))
    for is_named in (True, False):
        for name in arguments:
            for axis, dim in axes[name].items():
                if hasattr(dim, "__name__") is not is_named:
                    continue
                size = shapes[name][axis]
                if isinstance(size, int) and dim != torch.export.Dim.AUTO:
                    raise ExportError(
                        f"the module fixes axis {axis} ({axis_name(name, axis, dim)}) of {name} to {size}: "
                        f"{capture.HOW_TO_VARY}"
                    )
                names.setdefault(str(size), axis_name(name, axis, dim))
    return names


def _value(
    name: str, dtype: torch.dtype, shape: tuple[Any, ...], names: Mapping[str, str]
) -> Value:
    if dtype not in NAMES:
        raise ExportError(f"{name} is of {dtype}: use one of {', '.join(NAMES.values())}")
    sizes = (size if isinstance(size, int) else capture.renamed(str(size), names) for size in shape)
    return Value(name, NAMES[dtype], tuple(sizes))


def _state(state: State, past: Value, present: Value) -> ProgramState:
    where = f"state {state.name or state.argument}: argument {state.argument}"
    if past.dtype != present.dtype:
        raise ExportError(
            f"{where} is {past.dtype} and the result {present.name} is {present.dtype}: they must agree"
        )
    fits = len(past.shape) == len(present.shape) and all(
        one == other or axis == state.grows
        for axis, (one, other) in enumerate(zip(past.shape, present.shape, strict=True))
    )
    if not fits:
        raise ExportError(
            f"{where} has shape {list(past.shape)} and the result {present.name} {list(present.shape)}: they "
            "must agree, but for the axis along which a state grows"
        )
    return ProgramState.of(
        state.name or state.argument,
        past.name,
        present.name,
        past.dtype,
        past.shape,
        state.start,
        state.grows,
    )
