#!/usr/bin/env python3
"""Export a Mamba model and prove the result, in one go: load, export, build a TensorRT engine, verify.

\b
    python tools/export_engine.py models/kjv-bytes -o out/kjv
    python tools/export_engine.py state-spaces/mamba-130m-hf -o out/130m --dtype fp16 --engine

Writes OUT as `mamba-export export` does, with --engine the TensorRT engine as `mamba-export build` does, then
holds it against PyTorch on every backend that this machine has.
Exit code 0: exported and verified; 1: exported, and a check failed; 2: bad input, nothing written (where the
engine is refused after the export, that stays).
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mamba_export.cli import (
    BatchRangeOption,
    Dtype,
    DtypeOption,
    ForceOption,
    FuseLayersOption,
    LastLogitsOption,
    LengthRangeOption,
    ModelArgument,
    OpsetOption,
    OutOption,
    PluginOption,
    QuickOption,
    TokenizerOption,
    TrtRuntime,
    TrtRuntimeOption,
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
    fuse_layers: FuseLayersOption = True,
    tokenizer: TokenizerOption = None,
    quick: QuickOption = False,
    force: ForceOption = False,
    engine: Annotated[
        bool,
        typer.Option("--engine", help="Build a TensorRT engine too, our scan in it as a plugin."),
    ] = False,
    batch: BatchRangeOption = "1,4,16",
    length: LengthRangeOption = "1,128,4096",
    plugin: PluginOption = True,
    runtime: TrtRuntimeOption = TrtRuntime.auto,
) -> None:
    from mamba_export.backends.tensorrt import BuildOptions, build, check_installed
    from mamba_export.backends.tensorrt.profiles import parse_range
    from mamba_export.cli.build import summary
    from mamba_export.export import export
    from mamba_export.verify import verify
    from mamba_export.verify.table import print_report

    options = BuildOptions(
        batch=parse_range(batch, "--batch"),
        length=parse_range(length, "--length"),
        plugin=plugin,
        runtime=runtime.value,
    )
    if engine:
        check_installed(options)  # before minutes are spent on the export

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        exporting = progress.add_task("export", total=None)
        export(
            model,
            out,
            dtype=dtype.value,
            opset=opset,
            last_logits_only=last_logits_only,
            fuse_layers=fuse_layers,
            tokenizer=tokenizer,
            force=force,
            progress=lambda stage: progress.update(exporting, description=f"export: {stage}"),
        )
        progress.update(exporting, description="export: done", total=1, completed=1)
        description = None
        if engine:
            building = progress.add_task("engine", total=1.0)
            description = build(
                out,
                options,
                progress=lambda phase, share: progress.update(
                    building, description=f"engine: {phase.lower()}", completed=share
                ),
            )
            progress.update(building, description="engine: done", completed=1.0)
        verifying = progress.add_task("verify", total=None)
        report = verify(
            out,
            quick=quick,
            on_check=lambda check: progress.update(
                verifying, description=f"verify: {check.backend}, {check.check}"
            ),
        )
        progress.update(verifying, description="verify: done", total=1, completed=1)
    if description is not None:
        print(summary(out, description))
    print_report(report)
    if not report.passed:
        raise typer.Exit(1)
    console.print(f"{out} is ready: mamba-export run {out} --prompt '...'")


if __name__ == "__main__":
    run_app(app)
