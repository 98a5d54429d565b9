"""``mamba-export build``: progress on standard error, the engine and its trtexec line on standard output."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mamba_export.runtime.metadata import read_metadata
from mamba_export.tensorrt.building import BuildOptions, build
from mamba_export.tensorrt.bundling import bundle
from mamba_export.tensorrt.deploy import trtexec_line
from mamba_export.tensorrt.description import EngineDescription
from mamba_export.tensorrt.names import DEPLOY_FILE, ENGINE_FILE


def build_command(folder: Path, options: BuildOptions, *, force: bool) -> None:
    """Build an engine and tell of it.

    Raises:
        MambaExportError: bad input or a missing requirement, one clear line; nothing is written.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    # A log gets the result alone: a bar that cannot move only leaves empty lines.
    off = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        task = bar.add_task("build: starting", total=1.0)
        description = build(
            folder,
            options,
            force=force,
            progress=lambda phase, share: bar.update(
                task, description=f"build: {phase.lower()[:50]}", completed=share
            ),
        )
    print(summary(folder, description))
    print_trtexec(folder, options)


def bundle_command(folder: Path, out: Path, options: BuildOptions, *, force: bool) -> None:
    """Write a bundle and tell of it; raises as ``bundle`` does."""
    bundle(folder, out, options, force=force)
    print(f"wrote {out}: {DEPLOY_FILE} there says how to build the engine on the target")
    print_trtexec(out, options)


def summary(folder: Path, description: EngineDescription) -> str:
    """What was built, a line each for the engine, its plugins and its profiles."""
    built = description.build
    plugins = ", ".join(f"{count} {name}" for name, count in description.plugins.items())
    profiles = "; ".join(map(str, description.profiles))
    return (
        f"wrote {folder / ENGINE_FILE}: {description.kind.title} {description.runtime_version}, "
        f"{description.precision}, {built['engine_bytes'] / 1e6:.1f} MB in {built['seconds']:.1f} s, "
        f"peak memory {built['peak_memory_mib']} MiB\n"
        f"plugin layers: {plugins or 'none (function bodies)'}\n"
        f"profiles: {profiles}"
    )


def print_trtexec(folder: Path, options: BuildOptions) -> None:
    """Print the command that builds the same engine with TensorRT alone, to be run in the folder."""
    print(f"the same with trtexec, in {folder} on the target ({DEPLOY_FILE}):")
    print(trtexec_line(read_metadata(folder), options))
