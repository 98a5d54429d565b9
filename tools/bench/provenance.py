"""What a measurement was made of: the commit, the driver, the processor."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
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


def cpu_name() -> str:
    """Model of the processor and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def driver_version() -> str:
    """Version of the NVIDIA driver, from its management library; "unknown" without one."""
    text = ctypes.create_string_buffer(96)
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(96)):
            return "unknown"
    except (OSError, AttributeError):
        return "unknown"
    return text.value.decode()
