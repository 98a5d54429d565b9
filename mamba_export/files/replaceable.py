"""Which folder an output may take the place of: none, or with ``force`` one that we wrote, or an empty one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from mamba_export.errors import MambaExportError
from mamba_export.files.partial import entries
from mamba_export.files.paths import mounts, real, within


def check_name(out: Path) -> None:
    """Refuse the current folder.

    Raises:
        MambaExportError: it is.
    """
    if not out.parts:  # so is Path("")
        raise MambaExportError("the output is empty or '.': name a folder to write")


def check_place(out: Path, *, force: bool, marker: str, sources: Iterable[Path]) -> bool:
    """Refuse an output before any work is done for it.

    Args:
        out: absolute.
        force: whether a folder that is there may be replaced.
        marker: name of a file that every folder written by the caller holds.
        sources: files and folders that are read, which no replacing may touch.

    Returns:
        Whether the folder is there and cannot be renamed (a mount point, or in a folder that cannot be
        written), so that files are to be written into it.

    Raises:
        MambaExportError: the folder must not be replaced.
        OSError: it cannot be looked at.
    """
    if force:
        _check_apart(out, sources)
    if not _is_there(out):
        return False
    points = mounts()
    place = real(out)
    fixed = place in points or os.path.ismount(place) or not os.access(out.parent, os.W_OK)
    if not force and not (fixed and not entries(out)):
        raise exists(out)
    if force:
        if within(Path.cwd(), out):
            raise MambaExportError(
                f"{out} is or holds the current folder: --force replaces neither; give another output folder"
            )
        inside = [point for point in points if place in point.parents]
        if inside:
            raise MambaExportError(f"{out} holds the mount point {inside[0]}: unmount it first")
        check_ours(out, out, marker)
    return fixed


def check_ours(folder: Path, out: Path, marker: str) -> None:
    """Refuse a folder that we did not write, unless it is empty.

    Args:
        folder: to look at.
        out: what messages call it.
        marker: as in ``check_place``.

    Raises:
        MambaExportError: it is another's.
        OSError: it cannot be looked at.
    """
    if not _is_there(folder, out) or not entries(folder):
        return
    try:
        if stat.S_ISREG((folder / marker).lstat().st_mode):
            return
    except FileNotFoundError:
        pass
    raise MambaExportError(
        f"{out} was not written by this command (it holds no {marker}), and --force replaces only what was: "
        "give another output folder, or remove it yourself"
    )


def exists(out: Path) -> MambaExportError:
    """The error of an output that is there."""
    return MambaExportError(f"{out} exists: give another output folder, or --force to replace it")


def _is_there(folder: Path, out: Path | None = None) -> bool:
    try:
        mode = folder.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(mode):
        raise MambaExportError(f"{out or folder} is not a folder: give another output folder")
    return True


def _check_apart(out: Path, sources: Iterable[Path]) -> None:
    place = real(out)
    for source in sources:
        for path in _with_links(source):
            if within(place, path) or within(path, place):
                raise MambaExportError(
                    f"{out} is, holds or lies inside {source}, which is read: with --force give an output "
                    "folder apart from it"
                )


def _with_links(source: Path) -> Iterable[Path]:
    """A file or folder, and where the links in it lead."""
    yield real(source)
    if source.is_dir():
        with os.scandir(source) as found:
            yield from (real(Path(entry.path)) for entry in found if entry.is_symlink())
