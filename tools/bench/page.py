"""docs/performance.md and the README's figures: made from the records and their plots, never by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.figures import figures
from bench.plots import TITLES as PLOT_TITLES
from bench.plots import plot_file, write_plots
from bench.record import SUFFIXES_OF_OTHERS, read_record, rows_of, write_whole
from bench.rows import Row
from bench.tables import grids, markdown
from bench.validity import RefusedRecordError, check_limits
from mamba_export.errors import MambaExportError

README, PAGE, RECORDS = "README.md", "docs/performance.md", "tools/records"
_BEGIN = "<!-- figures: written by tools/benchmark.py --docs -->"
_END = "<!-- end of the figures -->"
_HEAD = """# Performance

<!-- written by tools/benchmark.py --docs from the records in tools/records: change those, not this page -->

Every time is the median of one run on one machine, with the peers measured in that run. Where there is a
limit, it is the least time that the hardware needs; a record in which anything beats its limit is refused.
[tools/benchmark.py](../tools/benchmark.py) measures all of it on your machine: `python tools/benchmark.py` for
the CPU, `python tools/benchmark.py --device cuda --long --plots --record tools/records` for an NVIDIA GPU.

On a CPU, llama.cpp is timed in the same run where its Python package is installed and its sources are named.
The source package on PyPI holds both, and compiles for the processor that it is on (10 to 20 minutes on two
cores):

```
pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
pip install llama_cpp_python-*.tar.gz
python tools/benchmark.py --llama-cpp llama_cpp_python-*/vendor/llama.cpp
```

It gets the same random weights, converted by its own script and quantised by its own library: F32 beside our
fp32, F16 and BF16 beside 16 bits, Q8_0 and Q4_0 beside 8 and 4. It runs in a process of its own on every core,
computes the last step's logits alone, as ours and transformers do, and its times are those of the quickest of
micro-batches of 32 to 512 tokens. Beside each time stands how far the logits are from PyTorch's in fp32 (norm
of the difference over the norm); where its fp32 logits are others, it has no times. What it cannot convert is
a line that says so. The weights are random: few bits keep less of them than of trained ones.
"""
_TITLES = {
    "scan": "Selective scan, gate and last state included",
    "vision": "Selective scan of vision models: four directions as groups, no gate, last state included",
    "step": "Step of the scan (length 1)",
    "convolution": "Causal convolution with SiLU",
    "dual": "State space duality (Mamba-2), head_dim 64, d_state 128, last state included",
    "dual step": "Step of the state space duality (length 1)",
    "prefill": "Prefill, until the last logits are on the host",
    "decode": "Decode, a token of every sequence; the limit is reading weights and states once",
    "long": "Decode after a long text",
}


@dataclass(frozen=True)
class Records:
    """The records of a repository.

    Args:
        valid: newest first, each with its own place under "file" and those of its plots by kind under "plots",
            relative to the root.
        refused: why each of the others is not shown.
    """

    valid: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def load_records(root: Path) -> Records:
    """The records under ``root``/tools/records.

    Raises:
        MambaExportError: a file there is no record.
    """
    records = Records()
    for file in sorted((root / RECORDS).glob("*.json"), reverse=True):
        if file.name.endswith(SUFFIXES_OF_OTHERS):
            continue
        record = read_record(file)
        try:
            check_limits(rows_of(record), f"{RECORDS}/{file.name}")
        except RefusedRecordError as error:
            records.refused.append(str(error))
            continue
        drawn = {kind: plot_file(file, kind) for kind in PLOT_TITLES}
        places = {k: p.relative_to(root).as_posix() for k, p in drawn.items() if p.is_file()}
        name = file.relative_to(root).as_posix()
        records.valid.append({**record, "file": name, "plots": places})
    return records


def page(records: Records) -> str:
    """The page of all tables and plots: of each device every piece of work, from its newest record."""
    parts = [_HEAD]
    seen: set[tuple[str, str]] = set()  # device and piece of work
    kinds: set[str] = set()
    for record in records.valid:
        rows = [row for row in rows_of(record) if (record["device"], row.what) not in seen]
        seen |= {(record["device"], row.what) for row in rows}
        shown = [row for row in rows if not row.kind or row.kind in _TITLES]
        kinds |= {row.kind for row in shown}
        if shown:
            parts += _section(record, shown)
    if not any(kinds):
        parts += ["## NVIDIA GPUs\n", "No valid record exists yet.\n"]
    if records.refused:
        parts.append("## Refused\n")
        parts += [f"- {reason}" for reason in records.refused]
    return "\n".join(parts).strip() + "\n"


def _section(record: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    made = [f"Measured on {record['date']}", f"commit {record.get('commit', 'not recorded')}"]
    if "driver" in record:
        made.append(f"driver {record['driver']}")
    parts = [f"## {record['device']}\n", f"{', '.join(made)}; {versions}.\n"]
    parts.append("```\n" + "\n".join(record["command"].split("; ")) + "\n```\n")
    parts += [f"{record[key]}\n" for key in ("method", "note") if record.get(key)]
    for grid in grids(rows):
        if grid.title:
            parts.append(f"### {_TITLES[grid.title]}\n")
        parts.append(markdown(grid) + "\n")
        place = record.get("plots", {}).get(grid.title)
        if place:
            parts.append(f"![{PLOT_TITLES[grid.title]}](../{place})\n")
    return parts


def with_figures(readme: str, records: Records) -> str:
    """The README with its figures replaced by those of the records.

    Raises:
        MambaExportError: it lacks the comments between which the figures stand.
    """
    before, begin, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise MambaExportError(f"{README} lacks the line {_BEGIN} or {_END}")
    return f"{before}{begin}\n\n{figures(records.valid)}\n\n{end}{after}"


def generated(root: Path) -> dict[Path, str]:
    """The texts that the records make, by file.

    Raises:
        MambaExportError: a record is none, or the README lacks the comments between which its figures stand.
    """
    records = load_records(root)
    readme = root / README
    return {
        readme: with_figures(readme.read_text(encoding="utf-8"), records),
        root / PAGE: page(records),
    }


def write_docs(root: Path) -> list[Path]:
    """Write them, and draw the plots of valid records that have none yet.

    Raises:
        MambaExportError: a record is none, a file cannot be written, or a plot needs matplotlib.
    """
    drawn = []
    for record in load_records(root).valid:
        if not record["plots"]:
            drawn += write_plots(root / record["file"], rows_of(record))
    texts = generated(root)
    for file, text in texts.items():
        file.parent.mkdir(exist_ok=True)
        write_whole(file, text)
    return [*drawn, *texts]
