"""What a measurement was made of: the commit, the driver, the processor."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mamba_export.errors import MambaExportError


def commit(root: Path, given: str | None = None) -> str:
    """The commit that ``root`` stands at, with " (changed)" where files differ from it.

    Args:
        root: of the repository.
        given: the answer, for a copy without git's own folder.

    Raises:
        MambaExportError: git does not know, and nothing is given.
    """
    if given is not None:
        return given
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        raise MambaExportError(
            f"git does not tell the commit of {root}: name it with --commit TEXT"
        ) from None
    return f"{head} (changed)" if changed else head


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """Model of the processor and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {cores()} cores"


def driver_version() -> str:
    """Version of the NVIDIA driver, as nvidia-smi says; "unknown" without it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.split() or ["unknown"])[0]


def shown_command(program: str, arguments: Sequence[str]) -> str:
    """A command for others to read: of this machine's absolute paths the names alone.

    Without its note, which a record has in a field of its own, once for all the commands that made it.
    """
    notes = [place for place, one in enumerate(arguments) if one.partition("=")[0] == "--note"]
    values = [place + 1 for place in notes if arguments[place] == "--note"]
    kept = [one for place, one in enumerate(arguments) if place not in (*notes, *values)]
    shown = [Path(one).name if Path(one).is_absolute() else one for one in kept]
    return shlex.join(["python", program, *shown])
