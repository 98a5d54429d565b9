#!/usr/bin/env python3
"""Attack the commands and the Python API with bad input: damaged folders, odd options, full disks, signals.

\b
    python tools/attack.py                           # a thousand attempts, a table by kind
    python tools/attack.py --count 10000 --seed 1 --record tests/records
    python tools/attack.py --seed 1 --only 4711      # one attempt again, with all that it printed
    python tools/attack.py --docs                    # write the figures of docs/reliability.md

An attempt is made of the seed and its number alone. Exit code 0: every answer was right; 1: some were not.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from attacks import campaign, record
from attacks.kinds import kind_of
from bench.record import write_whole
from mamba_export.cli import run_app

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


@app.command(help=__doc__)
def main(
    count: Annotated[int, typer.Option(help="How many attempts.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    start: Annotated[int, typer.Option(help="Number of the first attempt.", min=0)] = 0,
    only: Annotated[int | None, typer.Option(help="Make this attempt alone, and show it.")] = None,
    kind: Annotated[
        str, typer.Option(help="Make only attempts whose kind's name holds this, as in tokenizer.")
    ] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the record to this file.")
    ] = None,
    record_folder: Annotated[
        Path | None,
        typer.Option("--record", metavar="FOLDER", help="Write FOLDER/DATE-attack.json."),
    ] = None,
    docs: Annotated[
        bool,
        typer.Option("--docs", help="Write the newest record's figures into the page, and end."),
    ] = False,
) -> None:
    if docs:
        record.write_page()
        return
    if only is not None:
        raise typer.Exit(_one(seed, only))
    numbers = [n for n in range(start, start + count) if kind in kind_of(seed, n).name]
    with Progress(console=console) as progress:
        task = progress.add_task("attempts", total=len(numbers))

        def show(result: campaign.Result) -> None:
            progress.advance(task)
            for reason in result.reasons:
                line = f"{result.number} {result.kind}: {result.what}: {reason}"
                progress.console.print(Text(ascii(line)[1:-1]), soft_wrap=True)

        results = campaign.run(numbers, seed, on_result=show)
    content = record.make(results, seed=seed)
    _print(content)
    for path in (json_file, record_folder and record.path_in(record_folder)):
        if path is not None:
            write_whole(path, json.dumps(content, indent=2, ensure_ascii=True) + "\n")
            console.print(Text(f"wrote {path}"))
    raise typer.Exit(1 if content["found"] else 0)


def _one(seed: int, number: int) -> int:
    """Make one attempt, keep its files, print everything."""
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    [result] = campaign.run([number], seed, keep=folder)
    print(f"{result.kind}: {result.what!a}")
    print(f"exit code {result.code}, files in {folder / f'attempt-{number}'}")
    print(
        f"--- standard output\n{result.stdout!a}\n--- standard error\n{result.stderr!a}".replace(
            "\\n", "\n"
        )
    )
    print("\n".join(["---", *map(ascii, result.reasons)] if result.reasons else ["--- right"]))
    return 1 if result.reasons else 0


def _print(content: record.Record) -> None:
    table = Table("kind", box=None)
    for column in ("attempts", "right", "found"):
        table.add_column(column, justify="right")
    for kind, row in content["kinds"].items():
        table.add_row(
            Text(kind), str(row["attempts"]), str(row["right"]), str(row["attempts"] - row["right"])
        )
    table.add_section()
    table.add_row("all", str(content["attempts"]), str(content["right"]), str(content["found"]))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(run_app(app))
