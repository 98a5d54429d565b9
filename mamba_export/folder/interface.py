"""What a graph takes and returns against what the metadata says: one comparison for every runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mamba_export.contract.program import Value
from mamba_export.folder.metadata import Metadata

Described = tuple[str, tuple[int | str | None, ...]]
"""A tensor's dtype, and its shape: a name or None where a size is dynamic."""


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a graph or an engine, by name."""

    inputs: Mapping[str, Described]
    outputs: Mapping[str, Described]


def difference(metadata: Metadata, found: Interface) -> str:
    """One line that names the first input or output that is not the metadata's; empty where there is none.

    A graph that was swapped for another must not be fed by the metadata's shapes.
    """
    for kind, values, expected in (
        ("input", found.inputs, metadata.graph_inputs),
        ("output", found.outputs, metadata.graph_outputs),
    ):
        name = _first_different(values, expected)
        if name is not None:
            return (
                f"{metadata.model_path} is not the file that {metadata.folder.name}'s metadata "
                f"describes ({kind} {name} differs): export the model again"
            )
    return ""


def _first_different(found: Mapping[str, Described], expected: Sequence[Value]) -> str | None:
    wanted = {value.name: (value.dtype, value.shape) for value in expected}
    for name, described in wanted.items():
        if name not in found or not _same(described, found[name]):
            return name
    return next((name for name in found if name not in wanted), None)


def _same(expected: Described, found: Described) -> bool:
    return (
        expected[0] == found[0]
        and len(expected[1]) == len(found[1])
        and all(map(_same_size, expected[1], found[1]))
    )


def _same_size(expected: int | str | None, found: int | str | None) -> bool:
    """Runtimes that keep no names of sizes give None, for any dynamic one. Of a size that the metadata computes
    from others, such as "33*n//n", a runtime may know the number."""
    if found is None:
        return isinstance(expected, str)
    is_formula = isinstance(expected, str) and not expected.isidentifier()
    return expected == found or (is_formula and isinstance(found, int))
