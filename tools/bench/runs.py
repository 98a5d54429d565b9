"""A run from its first measurement to its tables: on the CPU, or on a GPU."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import ceilings as ceilings_module
from bench import gpu, peers, provenance
from bench.cases import Cases
from bench.gpu_dual import dual_rows
from bench.gpu_models import long_rows, model_rows
from bench.gpu_operators import operator_rows, vision_rows
from bench.limits import Ceilings
from bench.plots import write_plots
from bench.record import RecordFile, new_record, read_record, rows_of
from bench.rows import Row
from bench.tables import print_rows

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Destination:
    """Where a run's rows go, and what the record says beside them.

    Args:
        record: the file, or a folder for DATE-device.json; None for the tables alone.
        commit: of this repository.
        command: that was given.
        note: a sentence for the record.
        plots: draw them beside the record.
    """

    record: Path | None
    commit: str
    command: str
    note: str | None = None
    plots: bool = False

    def open(self, device: str, **more: Any) -> RecordFile | None:
        """The record's file, begun or continued."""
        if self.record is None:
            return None
        empty = new_record(
            [], device, self.command, commit=self.commit, note=self.note, **more
        )  # fmt: skip
        return RecordFile(self.record, empty)


def run_cpu(measure: Iterable[Row], destination: Destination, progress: Progress) -> None:
    """Time what ``measure`` yields, print the table and write the record."""
    file = destination.open(provenance.cpu_name())
    rows = []
    for row in measure:
        rows.append(row)
        progress(f"{row.what}: {row.implementation}")
        if file is not None:
            file.add(row)
    print_rows(rows, provenance.cpu_name())


@dataclass(frozen=True)
class GpuRun:
    """What a run on a GPU times.

    Args:
        cases: models.
        operators: whether to time the operators, too.
        dual: whether to time state space duality.
        vision: whether to time the scan at the shapes of vision models.
        dtypes, shapes: of the operators.
        long: whether to time decoding after a long text, too.
        budget: seconds after which nothing more is begun; None for all of it.
    """

    cases: Cases
    operators: bool
    dual: bool
    vision: bool
    dtypes: Sequence[str]
    shapes: Sequence[tuple[int, int, int]]
    long: bool = False
    budget: float | None = None

    def rows(self, ceilings: Ceilings, progress: Progress) -> Iterator[Row]:
        """All rows, one after the other."""
        if self.operators:
            yield from operator_rows(ceilings, self.dtypes, self.shapes, progress)
        if self.dual:
            yield from dual_rows(ceilings, self.dtypes, progress)
        if self.vision:
            yield from vision_rows(ceilings, self.dtypes, progress)
        if self.long:
            yield from long_rows(ceilings, self.cases, progress)
        if self.cases.prefill or self.cases.decode:
            yield from model_rows(ceilings, self.cases, progress)


def run_gpu(run: GpuRun, destination: Destination, progress: Progress) -> None:
    """Time it, print the tables, write the record and draw its plots.

    Raises:
        MambaExportError: there is no GPU.
        RefusedRecordError: a row beats its limit.
    """
    gpu.require_gpu()
    start = time.monotonic()
    gc.freeze()  # a capture collects garbage: what was imported need not be walked each time
    atexit.register(gc.unfreeze)  # libraries look for what is left when the process ends
    rates, measured = _ceilings(destination.record, progress)
    file = destination.open(
        gpu.gpu_name(),
        versions=peers.versions(),
        driver=provenance.driver_version(),
        method=gpu.METHOD,
        ceilings=measured,
    )
    rows = []
    for row in run.rows(rates, progress):
        rows.append(row)
        spent = time.monotonic() - start
        told = row.note if row.milliseconds is None else f"{row.milliseconds:.4g} ms"
        progress(f"  {row.implementation}: {told} [{spent:.0f} s]")
        if file is not None:
            file.add(row)
        if run.budget is not None and spent > run.budget:
            progress(f"the budget of {run.budget:g} s is spent: the rest is left out")
            break
    print_rows(rows, gpu.gpu_name())
    if file is not None:
        file.finish()
        if destination.plots:
            for plot in write_plots(file.path, rows_of(read_record(file.path))):
                progress(f"drew {plot}")


def _ceilings(record: Path | None, progress: Progress) -> tuple[Ceilings, dict[str, Any]]:
    """The rates: those of the record that is continued, so that all of it has the same limits, or measured."""
    if record is not None and record.is_file():
        measured = read_record(record).get("ceilings", {})
        names = {one.name for one in dataclasses.fields(Ceilings)}
        if names <= set(measured):
            return Ceilings(**{name: measured[name] for name in names}), measured
    progress("measuring copies, matrix products and exponentials")
    rates = ceilings_module.measure_ceilings(progress)
    launch = gpu.launch_milliseconds()
    progress(f"the smallest kernel: {1e3 * launch:.2f} us")
    return rates, {**dataclasses.asdict(rates), "launch_milliseconds": launch}
