#!/usr/bin/env python3
"""Make the report of what Mamba is for, from the records in tools/records: docs/report/index.html.

\b
    python tools/make_report.py            # in seconds; measures nothing
    python tools/make_report.py --quick    # short runs on this machine's CPU first, into build/report

What has no record yet is on the page too, with the command that makes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mamba_export.cli import run_app
from mamba_export.errors import MambaExportError
from mamba_export.printing import as_text

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)
ROOT = Path(__file__).resolve().parent.parent
PAGE = "docs/report/index.html"
QUICK_FOLDER = "build/report"


@app.command(help=__doc__)
def main(
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help=f"Run the tasks' short versions, for a page in {QUICK_FOLDER}."
        ),
    ] = False,
    task: Annotated[
        list[str] | None,
        typer.Option(help="With --quick, this task alone; several times for several."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help=f"With --quick, in place of {QUICK_FOLDER}."),
    ] = None,
) -> None:
    from report.committed import write_page
    from report.quick import run_quick

    if not quick:
        if task or out:
            raise MambaExportError("--task and --out need --quick")
        _say(f"wrote {write_page(ROOT).relative_to(ROOT)}")
        return
    folder = (out or ROOT / QUICK_FOLDER).resolve()
    failed = run_quick(ROOT, folder, task or [], _say)
    _say(f"wrote {folder / 'index.html'}")
    if failed:
        raise MambaExportError(f"short runs that failed: {', '.join(failed)}")


def _say(line: str) -> None:
    console.print(as_text(line), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_app(app)
