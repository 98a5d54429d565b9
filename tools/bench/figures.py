"""The README's figures: the few numbers that say most, over everything that was measured of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.peers import TRANSFORMERS
from bench.record import rows_of
from bench.rows import Comparison, comparisons
from bench.tables import number, ratio

_KINDS = {
    "scan": ("Selective scan", ("dtype", "batch", "length")),
    "dual": ("State space duality", ("dtype", "batch", "length")),
    "prefill": ("Prefill", ("model", "batch", "length")),
    "decode": ("Decode", ("model", "batch")),
}


def figures(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: of each GPU's record a range a kind, without one the CPU's times beside transformers'.

    Args:
        records: valid, newest first.
    """
    of_gpus = [text for record in records if (text := _gpu_figures(record))]
    if of_gpus:
        return "\n\n".join(of_gpus)
    lines = ["No valid record of an NVIDIA GPU exists yet."]
    lines += [f"On {record['device']}:\n\n{_cpu_lines(record)}" for record in records[:1]]
    return "\n\n".join(lines)


def _gpu_figures(gpu: dict[str, Any]) -> str:
    """A head and a line a kind; empty where the record has none of them."""
    lines = [line for kind in _KINDS if (line := _gpu_line(gpu, kind))]
    if not lines:
        return ""
    peers = ", ".join(
        f"{name} {gpu['versions'][name]}"
        for name in ("mamba_ssm", "causal_conv1d")
        if gpu["versions"].get(name, "not installed") != "not installed"
    )
    head = f"On an {gpu['device']} ({gpu['date']}), beside {peers or 'no peer'} at its fastest in the same run:"
    return "\n".join([head, "", *lines])


def _gpu_line(record: dict[str, Any], kind: str) -> str:
    found = comparisons(row for row in rows_of(record) if row.kind == kind)
    against = [one.against_peer for one in found if one.against_peer is not None]
    limits = [one.against_limit for one in found if one.against_limit is not None]
    if not limits:
        return ""
    name, sizes = _KINDS[kind]
    spans = ", ".join(f"{size} {_span(found, size)}" for size in sizes)
    line = f"- {name} ({len(limits)} sizes: {spans}): "
    if against:
        line += f"{_range(against)} the peer's speed, "
    return line + f"{_range(limits)} the limit's time."


def _span(found: Sequence[Comparison], size: str) -> str:
    values = list(dict.fromkeys(one.rows[0].sizes[size] for one in found))
    if all(isinstance(value, int) for value in values):
        values.sort()
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _range(ratios: Sequence[float]) -> str:
    lowest, highest = ratio(min(ratios)), ratio(max(ratios))
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _cpu_lines(record: dict[str, Any]) -> str:
    lines = []
    for one in comparisons(rows_of(record)):
        theirs = [r for r in one.rows if r.implementation.startswith(TRANSFORMERS)]
        ours = [r for r in one.rows if r not in theirs and r.milliseconds is not None]
        if not ours or not theirs or not theirs[0].milliseconds:
            continue
        best = min(ours, key=lambda row: row.milliseconds or 0.0)
        assert best.milliseconds is not None
        lines.append(
            f"- {best.what}: {number(best.milliseconds)} ms ({best.implementation}); "
            f"{theirs[0].implementation} {number(theirs[0].milliseconds)} ms, "
            f"{ratio(theirs[0].milliseconds / best.milliseconds)} as long."
        )
    return "\n".join(lines)
