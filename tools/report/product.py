"""Records of tools/benchmark.py as the report shows them: whole models beside mamba_ssm, on each GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.page import load_records
from bench.record import rows_of
from bench.rows import Row, comparisons
from report.record import ROOT
from report.shape import Axis, Plot, Record, Series

_PLOTS = {
    "prefill": ("Reading a prompt, beside mamba_ssm", "length", "tokens of the prompt"),
    "decode": ("Writing tokens, beside mamba_ssm", "batch", "sequences at once"),
}
"""Title, the size that is the x axis, and its label, by the kind of rows."""


def product_records(root: Path = ROOT) -> dict[Path, Record]:
    """By file, the newest record of each GPU that has whole models reading and writing beside a peer.

    Raises:
        MambaExportError: a file in tools/records is no record.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for record in load_records(root).valid:  # newest first
        plots = list(_plots(rows_of(record)))
        if len(plots) == len(_PLOTS) and record["device"] not in found:
            found[record["device"]] = (root / record["file"], _shown(record, plots))
    return dict(found.values())


def _plots(rows: Sequence[Row]) -> Iterator[Plot]:
    for kind, (title, size, label) in _PLOTS.items():
        lines: dict[str, list[tuple[int, float]]] = {}
        for one in comparisons(row for row in rows if row.kind == kind):
            times = one.against_peer
            if times is not None:
                sizes = one.rows[0].sizes
                lines.setdefault(sizes["model"], []).append((sizes[size], times))
        if lines:
            yield Plot(
                title,
                Axis(label, "log2"),
                Axis("mamba_ssm's time over ours", "linear"),
                [_series(name, points) for name, points in lines.items()]
                + [_even([x for points in lines.values() for x, _ in points])],
            )


def _series(name: str, points: list[tuple[int, float]]) -> Series:
    x, y = zip(*sorted(points), strict=True)
    return Series(name if name.startswith("mamba") else f"mamba-{name}", x, y)


def _even(x: Sequence[int]) -> Series:
    return Series("as fast as mamba_ssm", [min(x), max(x)], [1, 1], "dashed")


def _shown(record: dict[str, Any], plots: list[Plot]) -> Record:
    return Record(
        task="speed",
        title="Whole models",
        date=record["date"],
        device=record["device"],
        commit=record.get("commit", "not recorded"),
        command=record["command"],
        versions=record["versions"],
        driver=record.get("driver", ""),
        notes=[record["note"]] if record.get("note") else [],
        plots=plots,
    )
