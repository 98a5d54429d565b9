"""Benchmarks: operators and models on a CPU or a GPU, every implementation that is present timed in one run."""

from bench.models import model_rows
from bench.operators import operator_rows
from bench.readme import load_records, section, update_readme
from bench.record import RecordFile, Row, new_record, read_record
from bench.tables import print_rows

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
