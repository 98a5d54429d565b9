"""An operator's definition, and the registry of all of them: a row of the contract with its mathematics."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mamba_export.contract.spec import Form, Operator

Implementation = Callable[..., Any] | str
"""A function, or ``"module:function"``, imported at the first call that needs it."""


@dataclass(frozen=True)
class OperatorDefinition:
    """What an operator computes. ``define`` makes a torch operator of it.

    Args:
        spec: the contract's row. Functions take its inputs, then its attributes (but for derived ones), in
            order.
        reference: the truth: plain PyTorch for every floating dtype; returns the outputs in order.
        body: ONNX text of each form's function, by the form's name; attributes are read as ``@name``.
        forward: quicker implementations, by backend: "cpu" (plain PyTorch, any device), "triton", "native".
            A backend without one takes the next one's: native, triton, cpu, reference.
        backward: gradients by backend, "cpu" or "triton": functions of the outputs' gradients, the inputs and
            the attributes that return a gradient for each input, None for one that is absent. Empty for an
            operator without gradients.
        native_takes: for which inputs the compiled kernels are made; None for all.
    """

    spec: Operator
    reference: Callable[..., Any]
    body: Mapping[str, str]
    forward: Mapping[str, Implementation] = field(default_factory=dict)
    backward: Mapping[str, Implementation] = field(default_factory=dict)
    native_takes: Callable[..., bool] | None = None

    def __post_init__(self) -> None:
        forms = [form.name for form in self.spec.forms()]
        if list(self.body) != forms:
            raise ValueError(
                f"{self.spec.name}: bodies are of {list(self.body)}, and its forms are {forms}"
            )


_NEXT = {"native": "triton", "triton": "cpu", "cpu": "reference"}


class Implementations(dict[str, Callable[..., Any]]):
    """Functions by backend: imported when first asked for; a backend without one takes the next one's."""

    def __init__(self, known: Mapping[str, Implementation]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, backend: str) -> Callable[..., Any]:
        if backend in self._known:
            found = self._known[backend]
            function = _imported(found) if isinstance(found, str) else found
        elif backend in _NEXT:
            function = self[_NEXT[backend]]
        else:
            raise KeyError(backend)
        self[backend] = function
        return function


def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


_DEFINITIONS: dict[str, OperatorDefinition] = {}
_FORMS: dict[str, tuple[OperatorDefinition, Form]] = {}  # by a node's name


def register(definition: OperatorDefinition) -> None:
    """Add a definition. ValueError where its name or one of its forms' is taken."""
    forms = (*definition.spec.forms(), *definition.spec.packed_forms())
    for form in forms:
        if find(form.name) is not None:
            raise ValueError(f"there is an operator {form.name} already")
    _DEFINITIONS[definition.spec.name] = definition
    _FORMS.update({form.name: (definition, form) for form in forms})


def unregister(definition: OperatorDefinition) -> None:
    """Forget a definition."""
    del _DEFINITIONS[definition.spec.name]
    for form in (*definition.spec.forms(), *definition.spec.packed_forms()):
        del _FORMS[form.name]


def definitions() -> tuple[OperatorDefinition, ...]:
    """Every operator that is defined, in the order of definition: what export, verify and benchmarks read."""
    return tuple(_DEFINITIONS.values())


def find(node: str) -> tuple[OperatorDefinition, Form] | None:
    """The definition and form of a node of our domain, by its name; None for another node."""
    return _FORMS.get(node)
