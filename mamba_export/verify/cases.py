"""The parity grid of an operator, and random inputs for a point of it: from the contract's row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mamba_export.contract.names import BATCH, LENGTH
from mamba_export.contract.spec import (
    FP32,
    NEGATIVE,
    WEIGHT,
    Form,
    Operator,
    R,
    S,
    Size,
)
from mamba_export.contract.spec import Tensor as Row
from mamba_export.operators import OperatorDefinition, find

_CHOSEN = {R: "residual", S: "state"}
"""What the dtype classes that a file chooses stand for, in the words of a case."""

_WIDE = 1000
_SHORT_LENGTH = 5
"""Sizes from ``_WIDE`` on are tried at this length, which keeps the grid to seconds."""


@dataclass(frozen=True)
class Case:
    """One point of the grid of one node.

    Args:
        node: name of the operator's form.
        sizes: (name, number) of each size of the row that is no product of others.
        attributes: (name, value) of each attribute that is not derived.
        extreme: (tensor, shift, scale) for the one input that takes extreme values, or None.
        low: the dtype classes, of R and S, whose tensors have T's dtype, not fp32.
    """

    node: str
    sizes: tuple[tuple[str, int], ...]
    attributes: tuple[tuple[str, Any], ...]
    extreme: tuple[str, float, float] | None = None
    low: tuple[str, ...] = ()

    @classmethod
    def of(cls, node: str, **values: Any) -> Case:
        """The usual point of a node, with sizes or attributes of other values.

        Raises:
            ValueError: there is no such node, size or attribute of a node.
        """
        definition, form = definition_of(node)
        spec = definition.spec
        sizes: dict[str, int] = {size.name: size.usual for size in spec.free_sizes}
        attributes: dict[str, Any] = {
            one.name: form.flags.get(one.name, one.default)
            for one in spec.attributes
            if not one.derived
        }
        for name, value in values.items():
            if name in sizes:
                sizes[name] = value
            elif name in attributes and name not in form.flags:
                attributes[name] = value
            else:
                raise ValueError(f"{spec.name} has no size or attribute {name}")
        for size in spec.sizes:
            if size.divides is not None:
                sizes[size.name] = math.gcd(sizes[size.name], sizes[size.divides])
        return cls(node, tuple(sizes.items()), tuple(attributes.items()))

    def number(self, size: str) -> int:
        """A size's number. KeyError for an unknown one."""
        return dict(self.sizes)[size]

    def __str__(self) -> str:
        definition, form = definition_of(self.node)
        spec = definition.spec
        usual = {size.name: size.usual for size in spec.free_sizes}
        defaults = {one.name: one.default for one in spec.attributes} | dict(form.flags)
        always = (BATCH, LENGTH)
        words = [f"{n} {v}" for n, v in self.sizes if n in always or v != usual[n]]
        for name, value in self.attributes:
            if value != defaults[name]:
                words.append(f"{name} {value:g}" if not isinstance(value, bool) else name)
                if value is False:
                    words[-1] = f"no {name}"
        if self.extreme is not None:
            words.append("{} {:g} +- {:g}".format(*self.extreme))
        words += [f"{_CHOSEN[one]} in T" for one in self.low]
        return ", ".join(words)


def definition_of(node: str) -> tuple[OperatorDefinition, Form]:
    """The definition and form of a node. ValueError where none is defined."""
    found = find(node)
    if found is None:
        raise ValueError(f"there is no operator {node}")
    return found


def grid(node: str) -> list[Case]:
    """The parity grid of a node: every length and batch; one size, flag or extreme at a time; its ``cases``."""
    definition, form = definition_of(node)
    spec = definition.spec
    by_name = {size.name: size for size in spec.sizes}
    flags = {one.name: not one.default for one in spec.node_attributes if one.kind == "flag"}
    cases = [Case.of(node)]
    shapes = [by_name[name] for name in (BATCH, LENGTH) if name in by_name]
    numbers = (_tried(size) for size in shapes)
    for values in itertools.product(*numbers):
        cases.append(
            Case.of(node, **dict(zip([size.name for size in shapes], values, strict=True)))
        )
    for size in spec.free_sizes:
        if size not in shapes:
            cases += [Case.of(node, **_with_short_length(spec, size, n)) for n in size.tried]
    cases += [Case.of(node, **numbers) for numbers in spec.cases]
    cases += [Case.of(node, **{name: value}) for name, value in flags.items()]
    if flags:
        dividing = {size.name: size.tried[-1] for size in spec.sizes if size.divides}
        cases.append(Case.of(node, **flags, **dividing))
    for tensor in form.inputs:
        cases += [
            replace(Case.of(node), extreme=(tensor.name, shift, scale))
            for shift, scale in tensor.extremes
        ]
    chosen = [one for one in (R, S) if any(tensor.dtype == one for tensor in form.inputs)]
    for count in range(1, len(chosen) + 1):
        cases += [replace(Case.of(node), low=low) for low in itertools.combinations(chosen, count)]
    return list(dict.fromkeys(cases))


def _tried(size: Size) -> tuple[int, ...]:
    """Numbers of batch or length; the usual length belongs to them."""
    return (*size.tried, size.usual) if size.name == LENGTH or not size.tried else size.tried


def _with_short_length(spec: Operator, size: Size, number: int) -> dict[str, int]:
    has_length = any(one.name == LENGTH for one in spec.sizes)
    short = {LENGTH: _SHORT_LENGTH} if number >= _WIDE and has_length else {}
    return {size.name: number, **short}


def draw(case: Case, seed: int) -> dict[str, Tensor]:
    """Random inputs of a case in float64, by name, as the row says that tests draw them."""
    definition, form = definition_of(case.node)
    generator = torch.Generator().manual_seed(seed)
    sizes = definition.spec.with_products(dict(case.sizes))
    attributes = dict(case.attributes)
    return {row.name: _draw(row, sizes, attributes, case, generator) for row in form.inputs}


def _draw(
    row: Row,
    sizes: Mapping[str, int],
    attributes: Mapping[str, Any],
    case: Case,
    generator: torch.Generator,
) -> Tensor:
    shape = row.shape(sizes)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if row.values == NEGATIVE:
        values = -torch.exp(values)
    elif row.values == WEIGHT:
        values = values / math.sqrt(shape[0])
    if row.positive_unless is not None and not attributes[row.positive_unless]:
        values = 0.1 * values.abs()
    if case.extreme is not None and case.extreme[0] == row.name:
        _, shift, scale = case.extreme
        values = scale * values + shift
    return values


def dtype_of(row: Row, case: Case, dtype: str) -> str:
    """Name of a tensor's dtype in a case whose T is ``dtype``."""
    if row.dtype == FP32 or (row.dtype in _CHOSEN and row.dtype not in case.low):
        return "fp32"
    return dtype
