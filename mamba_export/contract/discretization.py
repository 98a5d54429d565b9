"""How the scans of a file discretise B: by Euler's rule or exact zero-order hold (A always by the latter)."""

from __future__ import annotations

from collections.abc import Iterable

from mamba_export.contract.operators import OPERATORS

EULER = "euler"
ZOH = "zoh"

DISCRETIZATIONS = {
    EULER: "B by Euler's rule, dt B, as mamba_ssm and the published models have it",
    ZOH: "B by exact zero-order hold, (exp(dt A) - 1) / A B",
}
"""The words of metadata, and what they mean."""

_OF_NODES = {
    form.name: ZOH if form.flags.get("exact_zoh") else EULER
    for op in OPERATORS
    if any(tensor.name == "A" for tensor in op.inputs)  # what has no A is no scan
    for form in (*op.forms(), *op.packed_forms())
}


def discretizations(nodes: Iterable[str]) -> tuple[str, ...]:
    """Those of a graph's nodes of our domain, by their names: each once, in ``DISCRETIZATIONS``'s order."""
    found = {_OF_NODES[node] for node in nodes if node in _OF_NODES}
    return tuple(one for one in DISCRETIZATIONS if one in found)
