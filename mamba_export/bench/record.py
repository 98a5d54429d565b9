"""What a benchmark run leaves: a small JSON record, a table for people, and the README's table."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mamba_export.versions import installed_versions

_PACKAGES = ("mamba_export", "torch", "onnxruntime", "transformers")
_BEGIN = "<!-- benchmark table: written by tools/benchmark.py --readme -->"
_END = "<!-- end of the benchmark table -->"


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        what: what was timed, the same for all implementations that are compared.
        implementation: who did it.
        milliseconds: median time.
        note: how many repetitions, or why there is no time.
    """

    what: str
    implementation: str
    milliseconds: float | None
    note: str = ""


def new_record(rows: Sequence[Row], device: str, command: str) -> dict[str, Any]:
    """A record as plain values: date, device, versions, command and rows."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": device,
        "versions": installed_versions(*_PACKAGES),
        "command": command,
        "rows": [asdict(row) for row in rows],
    }


def cpu_name() -> str:
    """Model of the processor and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def _groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.what, []).append(row)
    return groups


def _time(row: Row) -> str:
    if row.milliseconds is None:
        return row.note
    return f"{row.milliseconds:.0f}" if row.milliseconds >= 100 else f"{row.milliseconds:.3g}"


def _ratio(row: Row, slowest: float) -> str:
    return "" if row.milliseconds is None else f"{slowest / row.milliseconds:.1f}x"


def _slowest(rows: Sequence[Row]) -> float:
    return max((row.milliseconds for row in rows if row.milliseconds is not None), default=0.0)


def print_rows(rows: Sequence[Row], device: str) -> None:
    """Print a table: each implementation's time, and how much faster than the slowest it is."""
    table = Table(title=device, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what")
    table.add_column("implementation")
    table.add_column("ms", justify="right")
    table.add_column("faster", justify="right")
    for what, group in _groups(rows).items():
        slowest = _slowest(group)
        for index, row in enumerate(group):
            name = what if index == 0 else ""
            table.add_row(name, row.implementation, _time(row), _ratio(row, slowest))
    Console().print(table)


def markdown_table(records: Sequence[dict[str, Any]]) -> str:
    """Tables of the records, newest of each device first, as Markdown."""
    parts = []
    for record in records:
        rows = [Row(**row) for row in record["rows"]]
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        parts.append(f"{record['device']} ({record['date']}; {versions}):\n")
        parts.append("| what | implementation | ms | faster |\n|---|---|---|---|")
        for what, group in _groups(rows).items():
            slowest = _slowest(group)
            for row in group:
                cells = (what, row.implementation, _time(row), _ratio(row, slowest))
                parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts).strip()


def update_readme(readme: Path, records: Sequence[dict[str, Any]]) -> None:
    """Replace the README's benchmark table by that of the records.

    Raises:
        ValueError: the README lacks the comments between which the table stands.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{readme} lacks the line {_BEGIN} or {_END}")
    table = markdown_table(records)
    readme.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}", encoding="utf-8")
