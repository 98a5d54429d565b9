"""Paths of outputs: "~" expanded, and which places are mount points."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from mamba_export.errors import MambaExportError

_MOUNTS = Path("/proc/self/mountinfo")


def expand(path: str | Path) -> Path:
    """The path with "~" as the shell would expand it (a script's argument reaches us as it is).

    Raises:
        MambaExportError: it holds a byte 0, which no name of a file can.
    """
    if "\0" in str(path):
        raise MambaExportError(f"{str(path)!r} holds a byte 0: no file can have that name")
    path = Path(path)
    with contextlib.suppress(RuntimeError):  # "~unknown-user": a name like any other
        path = path.expanduser()
    return path


def absolute(path: str | Path) -> Path:
    """``expand``, from the root; links in its parents stay, and a last ".." is followed."""
    path = expand(path).absolute()
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
