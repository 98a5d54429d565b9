"""Benchmarks: operators and models on a CPU or a GPU, every implementation that is present timed in one run."""

from mamba_export.bench.models import model_rows
from mamba_export.bench.operators import operator_rows
from mamba_export.bench.readme import load_records, section, update_readme
from mamba_export.bench.record import RecordFile, Row, new_record, read_record
from mamba_export.bench.tables import print_rows

__all__ = [
    "RecordFile",
    "Row",
    "load_records",
    "model_rows",
    "new_record",
    "operator_rows",
    "print_rows",
    "read_record",
    "section",
    "update_readme",
]
