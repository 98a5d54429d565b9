"""Writes of which each is checked: what fails raises an OSError that names the file.

For files in a folder that ``new_folder``, ``new_files`` or ``new_file`` yielded; these make one line of it.
Libraries' own writers are not all checked: ``numpy.ndarray.tofile`` loses what its last flush could not write.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mamba_export.errors import MambaExportError
from mamba_export.files.paths import real


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError of the block the file's name, where it has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to. Use ``write`` alone: it raises where anything is not written.

    Raises:
        OSError: at a write, or at the end, where what was buffered is written.
    """
    with naming(path), path.open("wb") as file:
        yield file


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file."""
    with opened(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8; names of files that are not UTF-8 come out as the bytes that they are."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content."""
    with naming(target):
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            if (
                error.filename2 is not None
            ):  # of both: what is read was opened, so it is the writing
                error.filename = str(target)
            raise


def check_inside(path: Path, *folders: Path, error: type[MambaExportError]) -> None:
    """Refuse a link that leads out of the folders: what others' folders hold is copied, not what they point at.

    Args:
        path: a file.
        folders: it may lead into any of them.
        error: class of the error.

    Raises:
        MambaExportError: it leads elsewhere.
    """
    target = real(path)
    if not any(real(folder) in target.parents for folder in folders):
        raise error(
            f"{path} is a link that leads out of its folder, to {target}: put a copy of the file there"
        )
