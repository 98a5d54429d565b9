"""Renames of folders that Python's ``os`` does not have: onto nothing only, and of two in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2  # linux/fs.h

IMPOSSIBLE = frozenset(
    {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EBUSY, errno.EXDEV}
)
"""What a rename ends with where the filesystem has no such rename, or the folder is a mount point, or lies in
a lower layer of an overlay: its files may still be replaced one by one."""


def onto_nothing(source: Path, target: Path) -> None:
    """Rename a folder to a name that nothing has; plain rename replaces an empty folder.

    Raises:
        FileExistsError: something has the name, or got it meanwhile.
        OSError: the rename failed.
    """
    try:
        _renameat2(source, target, _NOREPLACE)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in IMPOSSIBLE:
            raise
        target.mkdir()  # the claim: of several runs one makes it
        try:
            source.rename(target)
        except OSError as failure:
            if failure.errno == errno.ENOTEMPTY:  # another run has begun to replace it
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), str(target)
                ) from None
            with contextlib.suppress(OSError):
                target.rmdir()
            raise


def exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step: at every moment each name has one of them.

    Raises:
        OSError: with an errno of ``IMPOSSIBLE`` where that cannot be done here.
    """
    _renameat2(one, other, _EXCHANGE)


def _renameat2(source: Path, target: Path, flags: int) -> None:
    function = _libc_function()
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(source), None, str(target))
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(source), None, str(target))


def _libc_function() -> Any:
    """C library's renameat2, or None in libraries without it (glibc before 2.28)."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        text = ctypes.c_char_p
        function.argtypes = [ctypes.c_int, text, ctypes.c_int, text, ctypes.c_uint]
    return function
