#!/usr/bin/env python3
"""Export a small model of each public family of Mamba models, and compare it with PyTorch.

\b
    git clone https://github.com/MzeroMiko/VMamba repositories/VMamba                    # and the others
    python tools/families.py --repositories repositories                               # all, a table
    python tools/families.py --repositories repositories --family VMamba --family Vim
    python tools/families.py --repositories repositories --record tools/records        # and the record
    python tools/families.py --docs                                                    # write docs/families.md
    python tools/families.py --list                                                    # which there are

FOLDER holds a clone of each repository under its own name; one that is not there is named. Each family runs in
a process of its own. What its repository imports (timm, einops, ...) is to be installed; mamba_ssm,
causal_conv1d, Triton and a GPU are not. The record is written after every family; a later run of the same
commit adds to it.

Exit code 0: every family that was asked for agrees with PyTorch; 1: some do not; 2: bad input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from mamba_export.cli import run_app
from mamba_export.errors import MambaExportError
from mamba_export.printing import as_text

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)
TOOLS = Path(__file__).resolve().parent


@app.command(help=__doc__)
def main(
    repositories: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Holds the clones.")
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a JSON record; in a folder DATE-families.json."),
    ] = None,
    seconds: Annotated[int, typer.Option(help="Stop a family after this time.", min=1)] = 900,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what a family's process prints.")
    ] = False,
    list_families: Annotated[
        bool, typer.Option("--list", help="Only list the families, with their repositories.")
    ] = False,
    docs: Annotated[
        bool, typer.Option("--docs", help="Only write docs/families.md from the records.")
    ] = False,
) -> None:
    from model_families import record as records
    from model_families.page import write_page

    if docs:
        console.print(as_text(f"wrote {write_page().relative_to(records.ROOT)}"))
        return
    from model_families.entries import FAMILIES

    if list_families:
        for entry in FAMILIES.values():
            print(f"{entry.name}: https://github.com/{entry.repository}, {entry.cls}")
        return
    if repositories is None:
        raise MambaExportError("give --repositories FOLDER, which holds the clones; see --list")
    if not repositories.is_dir():
        raise MambaExportError(
            f"{repositories} is no folder: --repositories takes that of the clones"
        )
    names = family or list(FAMILIES)
    for name in names:
        if name not in FAMILIES:
            raise MambaExportError(f"there is no family {name}: one of {', '.join(FAMILIES)}")

    from bench.provenance import shown_command

    content = records.new_record(shown_command("tools/families.py", sys.argv[1:]))
    file = None if record is None else records.path_in(record, content)
    if file is not None:
        content = records.continued(file, content)
    results = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("families", total=len(names))
        for name in names:
            progress.update(task, description=name)
            result = _try(name, repositories, seconds, verbose)
            results.append(result)
            progress.console.print(as_text(f"{name}: {_line(result)}"), soft_wrap=True)
            progress.advance(task)
            records.add(content, result, list(FAMILIES))
            if file is not None:
                records.write(file, content)
    _print(results)
    if file is not None:
        console.print(as_text(f"wrote {file}"))
    raise typer.Exit(0 if all(one["status"] == "right" for one in results) else 1)


def _try(name: str, repositories: Path, seconds: int, verbose: bool) -> dict[str, Any]:
    """One family in a process of its own: a repository may patch what it likes, or crash."""
    from model_families.entries import FAMILIES

    entry = FAMILIES[name]
    result: dict[str, Any] = {
        "family": name,
        "repository": entry.repository,
        "commit": None,
        "class": entry.cls,
        "note": entry.note,
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        path = os.pathsep.join(
            filter(None, [str(TOOLS), str(TOOLS.parent), os.environ.get("PYTHONPATH")])
        )
        command = [sys.executable, "-m", "model_families.trial", name, str(repositories), str(out)]
        shown = None if verbose else subprocess.DEVNULL
        try:
            code = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": path}, stdout=shown, stderr=shown,
                timeout=seconds, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return {**result, "status": "stopped", "happened": f"not finished after {seconds} s"}
        if not out.exists():
            happened = f"its process ended with code {code}; --verbose shows what it printed"
            return {**result, "status": "not built", "happened": happened}
        return dict(json.loads(out.read_text(encoding="utf-8")))


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['status']}, error {result['error']:.1e}, {result['seconds']} s"
    return f"{result['status']}: {result['happened']}"


def _print(results: list[dict[str, Any]]) -> None:
    table = Table("family", "status", box=None)
    for column in ("nodes of ours", "all nodes", "error", "without our library", "seconds"):
        table.add_column(column, justify="right")
    for one in results:
        numbers = [""] * 4
        if "error" in one:
            errors = (one["error"], one["error_without_library"])
            numbers = [
                str(sum(one["ours"].values())),
                str(one["nodes"]),
                *(f"{e:.1e}" for e in errors),
            ]
        table.add_row(Text(one["family"]), one["status"], *numbers, str(one.get("seconds", "")))
    Console().print(table)
    counts = Counter(one["status"] for one in results)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))


if __name__ == "__main__":
    sys.exit(run_app(app))
