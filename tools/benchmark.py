#!/usr/bin/env python3
"""Time the operators and models on this machine's CPU, every implementation in one run.

    python tools/benchmark.py                              # a table
    python tools/benchmark.py --record tools/records/x.json  # and a record of it
    python tools/benchmark.py --readme                     # write the README's table from the records

Times are medians after a warm-up; "faster" compares with the slowest implementation of the same work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mamba_export.cli import run_app
from mamba_export.errors import MambaExportError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)
ROOT = Path(__file__).resolve().parent.parent


@app.command(help=__doc__)
def main(
    size: Annotated[str, typer.Option(help="Published size of the model to time.")] = "130m",
    length: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 512,
    models: Annotated[
        bool, typer.Option("--models/--no-models", help="Time prefill and decode too.")
    ] = True,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a JSON record of the run.")
    ] = None,
    readme: Annotated[
        bool, typer.Option("--readme", help="Only write the README's table from tools/records.")
    ] = False,
) -> None:
    from mamba_export.bench import model_rows, new_record, operator_rows, print_rows, update_readme
    from mamba_export.bench.record import cpu_name

    if readme:
        files = sorted((ROOT / "tools" / "records").glob("*.json"), reverse=True)
        update_readme(ROOT / "README.md", [json.loads(file.read_text()) for file in files])
        return
    rows = []
    with console.status("operators") as status:
        for row in operator_rows():
            rows.append(row)
            status.update(f"{row.what}: {row.implementation}")
        if models:
            rows += model_rows(size, length, status.update)
    print_rows(rows, cpu_name())
    if record is not None:
        command = f"python tools/benchmark.py --size {size} --length {length}"
        content = json.dumps(new_record(rows, cpu_name(), command), indent=1) + "\n"
        try:
            record.write_text(content, encoding="utf-8")
        except OSError as error:
            raise MambaExportError(f"{record}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    run_app(app)
