"""Folders written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mamba_export.errors import MambaExportError


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``out`` that becomes ``out`` when the block ends well.

    On any error or Ctrl-C the temporary folder is removed and ``out`` is as it was.

    Args:
        out: the folder to make.
        force: replace an existing folder. A folder that we did not write is still replaced: the caller
            asked for it by name.

    Raises:
        MambaExportError: ``out`` exists and ``force`` is not set, its parent cannot be written, or the
            disk is full.
    """
    out = out.expanduser().absolute()
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise MambaExportError(f"{out} is not a folder: give another output folder")
    if out.exists() and not force:
        raise MambaExportError(
            f"{out} exists: give another output folder, or --force to replace it"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise MambaExportError(f"{out.parent}: cannot write there ({error.strerror})") from error
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private
        try:
            yield temporary
            _replace(temporary, out)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise MambaExportError(
                    f"{out.parent}: the disk is full; nothing was written"
                ) from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, out: Path) -> None:
    if not out.exists():
        temporary.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    out.rename(old / "old")
    try:
        temporary.rename(out)
    except OSError:
        (old / "old").rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
