"""Names of a module's inputs and results: those given, and those made from its forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree

from mamba_export import given as user
from mamba_export.errors import ExportError
from mamba_export.export.declare import State


def input_names(arguments: list[str], given: Sequence[str] | None) -> dict[str, str]:
    """Names in the file by argument; the arguments' own where none are given."""
    names = arguments if given is None else listed_names("input_names", given)
    if len(names) != len(arguments) or len(set(names)) != len(names):
        raise ExportError(
            f"input_names needs {len(arguments)} different names, of {', '.join(arguments)}"
        )
    return dict(zip(arguments, names, strict=True))


def listed_names(option: str, given: Any) -> list[str]:
    """Names that a user gave; ExportError where they are no list of texts."""
    names = user.listed(given, option, "a list of names", ExportError)
    if not all(isinstance(name, str) and name for name in names):
        raise ExportError(f"{option} is {user.shown(given)}: give a list of names")
    return names


def named_results(found: Any, names: Sequence[str] | None) -> dict[str, Tensor]:
    """Flat results of forward by name; None: the keys of a dict, or "output_0" and so on."""
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


def result_names(keys: list[str], order: list[int], states: Sequence[State]) -> list[str]:
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


def result_position(state: State, names: list[str]) -> int:
    """Position of the result that continues a state, which names or counts it."""
    if isinstance(state.result, int) and 0 <= state.result < len(names):
        return state.result
    if state.result in names:
        return names.index(str(state.result))
    raise ExportError(
        f"state {state.argument} is continued by result {state.result}: forward has {len(names)} results, "
        f"{', '.join(names)}"
    )


def forward_order(given: list[str], variable: str) -> list[str]:
    """Argument names in the order in which forward takes them, those of ``*variable`` by their number."""

    def order(name: str) -> tuple[bool, int]:
        number = name.removeprefix(f"{variable}_")
        is_variable = number.isdigit() and name != number
        return is_variable, int(number) if is_variable else 0

    return sorted(given, key=order)
