"""A user's module behind a program's signature: tensors in graph order in, outputs and presents out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mamba_export.errors import ExportError
from mamba_export.export.declare import State
from mamba_export.export.naming import forward_order, named_results, result_position
from mamba_export.export.symbolic_sizes import SymbolicSizes
from mamba_export.models.program import SharedParameters


class _Results:
    """What a call found out; an object of its own, since PyTorch undoes what a traced module does to itself.

    Attributes:
        names: of the flat results; None before they are known.
        order: positions of the outputs, then of the presents, among the results.
    """

    def __init__(self, names: list[str] | None) -> None:
        self.names = names
        self.order: list[int] = []


class CalledModule(SharedParameters):
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
        sizes = SymbolicSizes() if torch.compiler.is_exporting() else nullcontext()
        with sizes:
            return self._called(tensors)

    def _called(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given = dict(zip(self.arguments, tensors, strict=True))
        parameters = inspect.signature(self.wrapped.forward).parameters
        variable = [p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL]
        if variable:
            # Names of *tensors are "<name>_0" and so on; nothing can precede them by keyword.
            found = self.wrapped(*(given[name] for name in forward_order(list(given), variable[0])))
        else:
            found = self.wrapped(**given)
        leaves = named_results(found, self.found.names)
        names = list(leaves)
        if not self.found.order:
            presents = [result_position(state, names) for state in self.states]
            for state, position in zip(self.states, presents, strict=True):
                if presents.count(position) > 1:
                    raise ExportError(
                        f"two states have the result {names[position]}, of {state.argument}"
                    )
            outputs = [index for index in range(len(names)) if index not in presents]
            if not outputs:
                raise ExportError("forward returns states alone: it needs at least one output")
            self.found.names, self.found.order = names, [*outputs, *presents]
        found = tuple(leaves.values())
        return tuple(found[index] for index in self.found.order)
