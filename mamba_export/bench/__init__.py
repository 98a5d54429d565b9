"""Benchmarks: operators and models, every implementation that is present timed in one run."""

from mamba_export.bench.models import model_rows
from mamba_export.bench.operators import operator_rows
from mamba_export.bench.record import Row, markdown_table, new_record, print_rows, update_readme

__all__ = [
    "Row",
    "markdown_table",
    "model_rows",
    "new_record",
    "operator_rows",
    "print_rows",
    "update_readme",
]
