"""The report as a table for people."""

from __future__ import annotations

import dataclasses
import re

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mamba_export.contract.discretization import DISCRETIZATIONS
from mamba_export.printing import as_text
from mamba_export.verify.bounds import Check, Report, worst

_GRID = re.compile(r"(batch \d+), length (\d+)")


def _merged(checks: list[Check]) -> list[Check]:
    """Passing checks of one batch size over all lengths as one row, the worst; every failure stays."""
    rows: list[Check] = []
    for check in checks:
        found = _GRID.fullmatch(check.check)
        last = rows[-1] if rows else None
        if (
            found
            and last is not None
            and last.passed
            and check.passed
            and last.check.startswith(f"{found[1]}, length")
        ):
            # "batch 1, length 1" and "batch 1, length 2" become "batch 1, length 1 to 2".
            name = f"{last.check.split(' to ')[0]} to {found[2]}"
            rows[-1] = dataclasses.replace(worst([last, check]), check=name)
        else:
            rows.append(check)
    return rows


def _row(check: Check) -> tuple[Text | str, ...]:
    verdict = as_text("pass", "green") if check.passed else as_text("FAIL", "bold red")
    error = "-" if check.failure else f"{check.error:.1e}"
    where = f"{check.where}: {check.failure}" if check.failure else check.where
    return verdict, as_text(check.check), error, f"{check.bound:.1e}", as_text(where)


def print_report(report: Report) -> None:
    """Print the checks, backend by backend, each with its error, its bound and its largest difference."""
    console = Console()
    for backend in dict.fromkeys(check.backend for check in report.checks):
        checks = [check for check in report.checks if check.backend == backend]
        stored = "" if report.weights is None else f", weights {report.weights}"
        title = f"{report.folder} ({report.dtype}{stored}) against {report.truth}: {backend}"
        table = Table(
            title=as_text(title, "bold"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column("", no_wrap=True)
        table.add_column("check", no_wrap=True)
        table.add_column("error", justify="right", no_wrap=True)
        table.add_column("bound", justify="right", no_wrap=True)
        table.add_column("largest difference", overflow="fold")
        for check in _merged(checks):
            table.add_row(*_row(check))
        console.print(table)
    for one in report.discretization or ():
        console.print(as_text(f"discretisation: {DISCRETIZATIONS[one]}"))
    for name, reason in report.not_run.items():
        console.print(as_text(f"not run: {name}: {reason}"))
    failed = [check for check in report.checks if not check.passed]
    if failed:
        first = failed[0]
        detail = first.failure or f"error {first.error:.1e} over the bound {first.bound:.1e}"
        console.print(
            as_text(
                f"{len(failed)} of {len(report.checks)} checks failed; first: "
                f"{first.backend}, {first.check}, {first.where}: {detail}",
                "bold red",
            )
        )
    else:
        console.print(as_text(f"all {len(report.checks)} checks passed", "green"))
