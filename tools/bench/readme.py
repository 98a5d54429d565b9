"""The README's speed section: made from records and plots, never by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.plots import TITLES as PLOT_TITLES
from bench.plots import plot_file
from bench.record import Row, read_record, rows_of, write_whole
from bench.tables import grids, markdown

_BEGIN = "<!-- benchmark table: written by tools/benchmark.py --readme -->"
_END = "<!-- end of the benchmark table -->"
_TITLES = {
    "scan": "Selective scan, gate and last state included",
    "step": "Step of the scan (length 1); the limit is reading and writing the state once",
    "convolution": "Causal convolution with SiLU",
    "prefill": "Prefill, until the last logits are on the host",
    "decode": "Decode, a token of every sequence; the limit is reading weights and states once",
    "long": "Decode after a long text",
}


def section(records: Sequence[dict[str, Any]]) -> str:
    """Tables of the records as Markdown: of each device every kind of table, from the newest.

    A GPU's record holds more than a reader wants at once: the scan is shown in its first dtype, prefill at
    batch 1, and all of it is in the record.

    Args:
        records: newest first.
    """
    parts = []
    seen: set[tuple[str, str]] = set()  # device and kind
    for record in records:
        rows = [row for row in rows_of(record) if (record["device"], row.kind) not in seen]
        seen |= {(record["device"], row.kind) for row in rows}
        shown = _shown(rows)
        if not shown:
            continue
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        parts.append(f"{record['device']} ({record['date']}; {versions}):\n")
        for grid in grids(shown):
            if grid.title:
                parts.append(f"{_TITLES[grid.title]}:\n")
            parts.append(markdown(grid) + "\n")
        for kind, place in record.get("plots", {}).items():
            if any(row.kind == kind for row in shown):
                parts.append(f"![{PLOT_TITLES[kind]}]({place})\n")
        parts += [f"{record[key]}\n" for key in ("method", "note") if record.get(key)]
    return "\n".join(parts).strip()


def load_records(root: Path) -> list[dict[str, Any]]:
    """The records under ``root``/tools/records, newest first, each with the places of its plots by kind.

    Raises:
        MambaExportError: a file there is no record.
    """
    records = []
    for file in sorted((root / "tools" / "records").glob("*.json"), reverse=True):
        drawn = {kind: plot_file(file, kind) for kind in PLOT_TITLES}
        places = {k: p.relative_to(root).as_posix() for k, p in drawn.items() if p.is_file()}
        records.append({**read_record(file), "plots": places})
    return records


def _shown(rows: Sequence[Row]) -> list[Row]:
    dtypes = [row.sizes["dtype"] for row in rows if row.kind == "scan"]
    shown = []
    for row in rows:
        if row.kind and row.kind not in _TITLES:
            continue
        if row.kind == "scan" and row.sizes["dtype"] != dtypes[0]:
            continue
        if row.kind == "prefill" and row.sizes["batch"] != 1:
            continue
        shown.append(row)
    return shown


def update_readme(readme: Path, records: Sequence[dict[str, Any]]) -> None:
    """Replace the README's benchmark section by that of the records.

    Raises:
        ValueError: the README lacks the comments between which the section stands.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{readme} lacks the line {_BEGIN} or {_END}")
    write_whole(readme, f"{before}{begin}\n\n{section(records)}\n\n{end}{after}")
