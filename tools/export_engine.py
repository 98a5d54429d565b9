#!/usr/bin/env python3
"""Export a Mamba model and prove the result, in one go: load, export, verify.

\b
    python tools/export_engine.py models/kjv-bytes -o out/kjv
    python tools/export_engine.py state-spaces/mamba-130m-hf -o out/130m --dtype fp16

Writes OUT as `mamba-export export` does, then holds it against PyTorch on every backend that this machine has.
Exit code 0: exported and verified; 1: exported, and a check failed; 2: bad input, nothing written.
"""

from __future__ import annotations

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mamba_export.cli import (
    Dtype,
    DtypeOption,
    ForceOption,
    LastLogitsOption,
    ModelArgument,
    OpsetOption,
    OutOption,
    QuickOption,
    TokenizerOption,
    run_app,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = Console(stderr=True)


@app.command(help=__doc__)
def main(
    model: ModelArgument,
    out: OutOption,
    dtype: DtypeOption = Dtype.fp32,
    opset: OpsetOption = 20,
    last_logits_only: LastLogitsOption = False,
    tokenizer: TokenizerOption = None,
    quick: QuickOption = False,
    force: ForceOption = False,
) -> None:
    from mamba_export.export import export
    from mamba_export.parity import verify
    from mamba_export.parity.table import print_report

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        exporting = progress.add_task("export", total=None)
        export(
            model,
            out,
            dtype=dtype.value,
            opset=opset,
            last_logits_only=last_logits_only,
            tokenizer=tokenizer,
            force=force,
            progress=lambda stage: progress.update(exporting, description=f"export: {stage}"),
        )
        progress.update(exporting, description="export: done", total=1, completed=1)
        verifying = progress.add_task("verify", total=None)
        report = verify(
            out,
            quick=quick,
            on_check=lambda check: progress.update(
                verifying, description=f"verify: {check.backend}, {check.check}"
            ),
        )
        progress.update(verifying, description="verify: done", total=1, completed=1)
    print_report(report)
    if not report.passed:
        raise typer.Exit(1)
    console.print(f"{out} is ready: mamba-export run {out} --prompt '...'")


if __name__ == "__main__":
    run_app(app)
