"""A run: its jobs one after the other, and the record after each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table as Shown

from cost.findings import Findings
from cost.plan import SCANS, Plan, jobs
from cost.point import Point
from cost.processes import run_apart, run_job
from cost.transformer import parameters
from mamba_export.errors import MambaExportError
from mamba_export.printing import as_text
from report.numbers import cell_text
from report.record import Record, write_record

_JOB_SECONDS = 240.0
"""After which a process is ended: no job takes half of it."""


def run(
    plan: Plan,
    begun: Record,
    folder: Path,
    progress: Callable[[str], None],
    *,
    record: Path | None = None,
    graphs: Path | None = None,
    budget: float | None = None,
    note: str | None = None,
) -> Record:
    """Measure what a plan says, print tables and write the record.

    Args:
        plan: what to measure.
        begun: the record without findings.
        folder: for models.
        progress: is told what is measured, and what was found.
        record: where to write it; None for the tables alone.
        graphs: traced graphs; None to trace them.
        budget: seconds after which no further job is begun.
        note: a sentence for the record.

    Raises:
        MambaExportError: nothing was measured, or the record cannot be written.
    """
    start = time.monotonic()
    notes = [*([note] if note else []), *_notes(plan)]
    points: list[Point] = []
    left_out = []
    for who, make in jobs(plan, folder, graphs, progress):
        if budget is not None and time.monotonic() - start > budget:
            left_out.append(who)
            continue
        job = make()
        progress(f"{who} ...")
        run_one = run_apart if plan.device == "cpu" and who != SCANS else run_job
        for point in run_one(job, _JOB_SECONDS):
            points.append(point)
            progress(f"  {_line(point)}")
        if record is not None:
            write_record(record, _whole(begun, plan, points, notes))
    if left_out:
        notes.append(f"The time was up before {', '.join(left_out)}.")
    made = _whole(begun, plan, points, notes)
    if not any(point.value is not None for point in points):
        raise MambaExportError(f"nothing was measured: {points[0].note if points else 'no time'}")
    if record is not None:
        progress(f"wrote {write_record(record, made)}")
    _print(made)
    return made


def _whole(begun: Record, plan: Plan, points: list[Point], notes: list[str]) -> Record:
    found = Findings(plan, points)
    return replace(
        begun, notes=notes, tables=found.tables(), plots=found.plots(), claims=found.claims()
    )


def _notes(plan: Plan) -> list[str]:
    mamba, other = plan.mamba, plan.transformer
    theirs = (
        "mamba_ssm: prompts as a CUDA graph or as one calls it, whichever is quicker, memory of the latter; "
        "its captured step, which chooses no token."
    )
    standard = (
        "Transformer, standard ONNX: as mamba_export exports a model with attention, its cache a state that "
        "each step makes anew."
    )
    return [
        f"Models: d_model {mamba.d_model}, vocabulary {mamba.vocab_size:,}, {plan.dtype}, random weights; "
        f"{mamba.n_layer} layers of Mamba or Mamba-2, {other.n_layer} of the Transformer "
        f"({parameters(other) / 1e6:.3g} million parameters).",
        "Transformer: Llama's layers in ONNX Runtime with its own fused nodes (GroupQueryAttention, which is "
        "FlashAttention on a GPU) and a cache that is written in place; its step also as a CUDA graph there. "
        "A step after a text that was not read takes a cache that holds any numbers.",
        "A written token: the least of up to four measurements, each a median.",
        "Scans: ours and mamba_ssm's are kernels; PyTorch's loop is run as written, its parallel scan has all "
        "of its terms in memory.",
        *([theirs] if plan.peers else []),
        *([standard] if plan.standard else []),
    ]


def _line(point: Point) -> str:
    value = point.note if point.value is None else cell_text(point.value)
    return f"{point.kind} {point.who} {point.at}: {value}"


def _print(record: Record) -> None:
    console = Console()
    for table in record.tables:
        shown = Shown(title=table.title, title_justify="left", caption=table.note or None)
        for column in table.columns:
            shown.add_column(as_text(column))
        for row in table.rows:
            shown.add_row(*(as_text(cell_text(cell)) for cell in row))
        console.print(shown)
    for claim in record.claims:
        sign = "yes" if claim.holds else "NO "
        told = f"{sign} {claim.claim}: {claim.ours} (published: {claim.published or 'nothing'})"
        console.print(as_text(told), highlight=False, soft_wrap=True)
