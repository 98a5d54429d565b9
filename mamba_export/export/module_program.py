"""A user's own module as a program: arguments, results and states found by tracing it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mamba_export.contract.program import Program, Value
from mamba_export.contract.program import State as ProgramState
from mamba_export.errors import ExportError
from mamba_export.export import capture, contents, naming
from mamba_export.export.arguments import module_dtype
from mamba_export.export.axes import DynamicShapes, axis_name, declared_axes, fitting_examples
from mamba_export.export.called_module import CalledModule
from mamba_export.export.declare import State
from mamba_export.export.dtypes import NAMES
from mamba_export.export.fixed import HOW_TO_VARY
from mamba_export.fields import Number, shown


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


def trace_module(
    module: nn.Module,
    arguments: Mapping[str, Tensor],
    *,
    dynamic_shapes: DynamicShapes = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    states: Sequence[State] = (),
) -> TracedModule:
    """Trace a module of the user's own, and describe it as a program.

    Args:
        module: its forward takes tensors and returns tensors, possibly nested in tuples, lists and dicts.
        arguments: example tensors by name, as ``bind`` and ``check_states`` found them right.
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
    if output_names is not None:
        output_names = naming.listed_names("output_names", output_names)
    of_state = {state.argument: state for state in states}
    grows = {state.argument: state.grows for state in states if state.grows is not None}
    dtype = module_dtype(module)
    ordered = [name for name in arguments if name not in of_state] + list(of_state)
    graph_names = naming.input_names(list(arguments), input_names)
    axes = declared_axes(arguments, dynamic_shapes, grows)
    examples = dict(zip(arguments, fitting_examples(arguments, axes), strict=True))

    called = CalledModule(module, ordered, output_names, states)
    tensors, dynamic = [examples[name] for name in ordered], [axes[name] for name in ordered]
    exported = capture.trace(called, tensors, dynamic)
    assert called.found.names is not None
    results = called.found.names
    if output_names is None:
        results = naming.result_names(results, called.found.order, states)
    clash = set(results) & set(graph_names.values())
    if clash:
        raise ExportError(
            f"{clash.pop()} is the name of an input and of a result: give output_names"
        )
    contents.warn_of_growth(called, tensors, dynamic, exported)
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
    called = CalledModule(module, arguments, results, declared)
    return Program(called, tuple(inputs), tuple(outputs), tuple(states))


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
                        f"{HOW_TO_VARY}"
                    )
                names.setdefault(str(size), axis_name(name, axis, dim))
                names.update(capture.root_name(str(size), axis_name(name, axis, dim)))
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
    if not Number().holds(state.start):
        raise ExportError(f"{where}: start is {shown(state.start)}, expected {Number()}")
    return ProgramState.of(
        state.name or state.argument,
        past.name,
        present.name,
        past.dtype,
        past.shape,
        state.start,
        state.grows,
        state.longest,
    )
