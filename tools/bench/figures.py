"""The README's figures: the few numbers that say most, over everything that was measured of a kind."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from bench.peers import LLAMA_CPP, TRANSFORMERS
from bench.published import size_order
from bench.record import rows_of
from bench.rows import Comparison, Row, comparisons
from bench.tables import ratio

CPU_PEERS = (LLAMA_CPP, TRANSFORMERS)
"""How the names of their rows begin."""

_KINDS = {
    "scan": ("Selective scan", ("dtype", "batch", "length")),
    "dual": ("State space duality", ("dtype", "batch", "length")),
    "prefill": ("Prefill", ("model", "batch", "length")),
    "decode": ("Decode", ("model", "batch")),
}


def figures(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: of each GPU's record a range a kind, and of each CPU's newest a range a kind and peer.

    Args:
        records: valid, newest first.
    """
    of_gpus = [text for record in records if (text := _gpu_figures(record))]
    of_cpus: dict[str, str] = {}
    for record in records:
        if record["device"] not in of_cpus and (text := _cpu_figures(record)):
            of_cpus[record["device"]] = text
    none = "No valid record of an NVIDIA GPU exists yet."
    return "\n\n".join([*(of_gpus or [none]), *of_cpus.values()])


def _gpu_figures(gpu: dict[str, Any]) -> str:
    """A head and a line a kind; empty where the record has none of them."""
    kinds = {kind: comparisons(r for r in rows_of(gpu) if r.kind == kind) for kind in _KINDS}
    lines = [line for kind, found in kinds.items() if (line := _gpu_line(kind, found))]
    if not lines:
        return ""
    made = f"On an {gpu['device']} ({_made(gpu)})"
    if all(one.against_peer is None for found in kinds.values() for one in found):
        return "\n".join([f"{made}, without a peer:", "", *lines])
    peers = ", ".join(
        f"{name} {gpu['versions'][name]}"
        for name in ("mamba_ssm", "causal_conv1d")
        if gpu["versions"].get(name, "not installed") != "not installed"
    )
    head = f"{made}, beside {peers} at its fastest in the same run:"
    return "\n".join([head, "", *lines])


def _made(record: dict[str, Any]) -> str:
    """Date of a record, and its commit where it has one."""
    commit = record.get("commit")
    return f"{record['date']}, commit {commit[:7]}" if commit else str(record["date"])


def _gpu_line(kind: str, found: Sequence[Comparison]) -> str:
    against = [one.against_peer for one in found if one.against_peer is not None]
    limits = [one.against_limit for one in found if one.against_limit is not None]
    if not limits:
        return ""
    name, sizes = _KINDS[kind]
    weights = dict.fromkeys(
        one.rows[0].sizes["weights"] for one in found if "weights" in one.rows[0].sizes
    )
    if weights:
        name += f" with weights of {', '.join(weights)}"
    spans = ", ".join(f"{size} {_span(found, size)}" for size in sizes)
    line = f"- {name} ({len(limits)} sizes: {spans}): "
    if against:
        line += f"{_range(against)} the peer's speed, "
    return line + f"{_range(limits)} the limit's time."


def _span(found: Sequence[Comparison], size: str) -> str:
    """The smallest and the largest; of models those of each family."""
    values = list(dict.fromkeys(one.rows[0].sizes[size] for one in found))
    if size == "model":
        values.sort(key=size_order)
        families = itertools.groupby(values, key=lambda model: size_order(model)[0])
        return " and ".join(_ends(list(models)) for _, models in families)
    if all(isinstance(value, int) for value in values):
        values.sort()
    return _ends(values)


def _ends(values: Sequence[Any]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _range(ratios: Sequence[float]) -> str:
    lowest, highest = ratio(min(ratios)), ratio(max(ratios))
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _cpu_figures(record: dict[str, Any]) -> str:
    """A head and a line for each kind of work of models that a peer was timed at; empty without any."""
    kinds: dict[str, list[Comparison]] = {}
    for one in comparisons(rows_of(record)):
        kinds.setdefault(_without_model(one), []).append(one)
    lines = [line for kind, found in kinds.items() if (line := _cpu_line(kind, found))]
    if not lines:
        return ""
    note = f" ({record['note']})" if record.get("note") else ""
    head = (
        f"On {record['device']} ({_made(record)}), beside each peer at its fastest in the same run"
        f"{note}:"
    )
    return "\n".join([head, "", *lines])


def _cpu_line(kind: str, found: Sequence[Comparison]) -> str:
    parts = []
    for peer in CPU_PEERS:
        against = [times for one in found if (times := _against(one, peer)) is not None]
        if against:
            parts.append(f"{_range(against)} the speed of {peer}")
    models = ", ".join(one.rows[0].what.partition(" ")[0] for one in found)
    return f"- {kind} ({models}): {', '.join(parts)}." if parts else ""


def _without_model(one: Comparison) -> str:
    """What was timed: "fp32, a decoded token" of "130m fp32, a decoded token"."""
    return one.rows[0].what.partition(" ")[2]


def _against(one: Comparison, peer: str) -> float | None:
    """A peer's time over our best form's; None where one of its forms failed, for that may be its best."""
    ours = [row.milliseconds for row in one.rows if row.milliseconds and not _cpu_peer(row)]
    theirs = [row.milliseconds for row in one.rows if _cpu_peer(row) == peer]
    whole = [time for time in theirs if time]
    if not ours or not whole or len(whole) < len(theirs):
        return None
    return min(whole) / min(ours)


def _cpu_peer(row: Row) -> str:
    """Whose it is, of a CPU's rows; empty for ours."""
    return next((peer for peer in CPU_PEERS if row.implementation.startswith(peer)), "")
