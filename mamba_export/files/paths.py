"""Paths of outputs: where they lead, and which are mount points."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mamba_export import given

_MOUNTS = Path("/proc/self/mountinfo")


def absolute(path: str | Path) -> Path:
    """The path from the root, "~" expanded; links in its parents stay, and a last ".." is followed.

    Raises:
        MambaExportError: no file can have that name.
    """
    path = given.path(path, "the output").absolute()
    return real(path) if path.name == ".." else path


def real(path: Path) -> Path:
    """The path without links; those that lead in a circle stay (``Path.resolve`` raises RuntimeError)."""
    return Path(os.path.realpath(path))


def within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, by the files themselves: links and bind mounts count."""
    return any(_same(place, folder) for place in (path, *path.parents))


def mounts() -> list[Path]:
    """Every mount point that this process sees; none where the system does not tell."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return []
    # A blank or a backslash in a name is written as its octal number.
    return [
        Path(os.fsdecode(re.sub(rb"\\(\d{3})", lambda found: bytes([int(found[1], 8)]), field)))
        for field in (line.split(b" ")[4] for line in lines)
    ]


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
