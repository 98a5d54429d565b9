"""``mamba-export build``: progress on standard error, what was built on standard output."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mamba_export.backends.tensorrt.building import build
from mamba_export.backends.tensorrt.bundling import bundle
from mamba_export.backends.tensorrt.description import EngineDescription
from mamba_export.backends.tensorrt.names import DEPLOY_FILE, ENGINE_FILE
from mamba_export.backends.tensorrt.options import BuildOptions


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


def bundle_command(folder: Path, out: Path, options: BuildOptions, *, force: bool) -> None:
    """Write a bundle and tell of it; raises as ``bundle`` does."""
    bundle(folder, out, options, force=force)
    print(f"wrote {out}: {DEPLOY_FILE} there says how to build the engine on the target")


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
