"""``mamba-export build``: an engine of an exported folder, or a bundle with which a target builds its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mamba_export import contract
from mamba_export.backends.tensorrt.names import DEPLOY_FILE, ENGINE_FILE
from mamba_export.backends.tensorrt.options import BuildOptions, parse_sizes, parse_workspace
from mamba_export.backends.tensorrt.profiles import parse_range
from mamba_export.cli.bars import progress_bars
from mamba_export.cli.options import (
    AUTO,
    DEFAULT_BATCH,
    DEFAULT_LENGTH,
    BatchRangeOption,
    EngineRuntimeOption,
    FolderArgument,
    LengthRangeOption,
    PluginOption,
    one_of,
)
from mamba_export.cli.streams import print_lines
from mamba_export.printing import printable

if TYPE_CHECKING:
    from mamba_export.backends.tensorrt.description import EngineDescription


def command(
    folder: FolderArgument,
    precision: Annotated[
        str | None,
        one_of(contract.DTYPES, help="Must be the file's own dtype, which is the default."),
    ] = None,
    batch: BatchRangeOption = DEFAULT_BATCH,
    length: LengthRangeOption = DEFAULT_LENGTH,
    past: Annotated[
        str | None,
        typer.Option(
            metavar="MIN,OPT,MAX",
            help="Steps read before, of states that grow; default: 0 to the maximum of --length.",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MIN,OPT,MAX", help="Range of another axis, as of an image."),
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most scratch memory of a layer, as in 512M or 4G."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Kernel timings, read and written: later builds are quick."
        ),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="Runs on later TensorRT versions too."),
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option("--hardware-compatible", help="Runs on every GPU from Ampere on."),
    ] = False,
    plugin: PluginOption = True,
    runtime: EngineRuntimeOption = AUTO,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Build nothing; write what a target needs to build it itself."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing engine, or FOLDER.")
    ] = False,
) -> None:
    """Write OUT/model.engine for TensorRT or TensorRT-RTX, engine.json and DEPLOY.md."""
    options = BuildOptions(
        precision=precision,
        batch=parse_range(batch, "--batch"),
        length=parse_range(length, "--length"),
        past=None if past is None else parse_range(past, "--past", minimum=0),
        sizes=parse_sizes(size or ()),
        workspace_mib=None if workspace is None else parse_workspace(workspace),
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        plugin=plugin,
        runtime=runtime,
    )
    if bundle is None:
        _build(folder, options, force)
    else:
        _bundle(folder, bundle, options, force)


def _build(folder: Path, options: BuildOptions, force: bool) -> None:
    from mamba_export.backends.tensorrt import build

    with progress_bars(Console(stderr=True), transient=True, in_logs=False) as bar:
        task = bar.add_task("build: starting", total=1.0)
        description = build(
            folder,
            options,
            force=force,
            progress=lambda phase, share: bar.update(
                task, description=printable(f"build: {phase.lower()[:50]}"), completed=share
            ),
        )
    print_lines(summary(folder, description))


def _bundle(folder: Path, out: Path, options: BuildOptions, force: bool) -> None:
    from mamba_export.backends.tensorrt import bundle

    bundle(folder, out, options, force=force)
    print_lines(f"wrote {out}: {DEPLOY_FILE} there says how to build the engine on the target")


def summary(folder: Path, description: EngineDescription) -> str:
    """What was built, a line each for the engine, its plugins, its profiles and the way without Python."""
    built = description.build
    plugins = ", ".join(f"{count} {name}" for name, count in description.plugins.items())
    profiles = "; ".join(map(str, description.profiles))
    return (
        f"wrote {folder / ENGINE_FILE}: {description.kind.title} {description.runtime_version}, "
        f"{description.precision}, {built['engine_bytes'] / 1e6:.1f} MB in {built['seconds']:.1f} s, "
        f"peak memory {built['peak_memory_mib']} MiB\n"
        f"plugin layers: {plugins or 'none (function bodies)'}\n"
        f"profiles: {profiles}\n"
        f"to build the same on a target without Python: {folder / DEPLOY_FILE} has the trtexec line"
    )
