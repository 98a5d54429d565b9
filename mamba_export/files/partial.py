"""The hidden folder in which a run prepares what it writes, and what becomes of it when a run is killed.

A partial folder lies beside what it is to become, or in the folder that its files go to. Its run holds a lock
on it, which the system drops when the process ends in whatever way: so the next run can tell a dead one from
a living one, bring its work to an end and take it away. Inside lie

- ``new``: what is prepared;
- ``old``: files of the folder around it that were moved away, while that is going on;
- ``replaced``: the same once all of them are there; from that moment on the new files are the right ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

PREFIX = ".mamba_export.partial-"
_LOST_AND_FOUND = "lost+found"  # the file system's own, at the top of a volume


class Partial:
    """A partial folder of this run.

    Args:
        home: the folder that it lies in. Nothing is made before ``make``.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / f"{_prefix()}{secrets.token_hex(6)}"
        self.new = self.path / "new"
        self._lock: int | None = None

    def make(self) -> None:
        """Make it, locked.

        Raises:
            FileNotFoundError: ``home`` is missing, or another run took the new folder for a dead one's.
            OSError: it cannot be made.
        """
        self.path.mkdir(0o700)
        try:
            self._lock = lock(self.path)
        except BlockingIOError as error:
            raise FileNotFoundError(
                errno.ENOENT, os.strerror(errno.ENOENT), str(self.path)
            ) from error
        self.new.mkdir()

    def replace(self, last: str, *, everything: bool, check: Callable[[], object]) -> None:
        """Move the new files into ``home``, in the place of those of the same names.

        A kill at any moment leaves either the old files or the new ones, where the next run looks first
        (``sweep``). A reader never sees a mixture beside ``last``.

        Args:
            last: name of the file that describes the others: the first to go and the last to come.
            everything: whether all of home's other files go too.
            check: called when no other run can do the same; raises where it must not be done.
        """
        with locked(self.home):
            check()
            incoming = sorted(_names(self.new), key=lambda name: name == last)
            there = [name for name in entries(self.home) if everything or name in incoming]
            old = self.path / "old"
            old.mkdir()
            for name in sorted(there, key=lambda name: name != last):
                _move(self.home / name, old / name, self.path)
            old.rename(self.path / "replaced")
            for name in incoming:
                _move(self.new / name, self.home / name, self.path)

    def end(self) -> None:
        """Settle and remove it, whatever was done; may be called again."""
        with contextlib.suppress(OSError):
            _settle(self.path)
        if self._lock is not None and not self.path.exists():
            descriptor, self._lock = self._lock, None
            os.close(descriptor)


def sweep(home: Path) -> None:
    """Bring to an end what runs that are dead left in a folder; the living ones' stay."""
    try:
        with os.scandir(home) as found:
            names = [entry.name for entry in found if entry.name.startswith(_prefix())]
    except OSError:
        return
    for name in names:
        path = home / name
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.geteuid():
                continue
            descriptor = lock(path)
            if descriptor is None:  # no locks here, so nobody knows whether it is dead
                continue
            try:
                _settle(path)
            finally:
                os.close(descriptor)


def entries(folder: Path) -> list[str]:
    """Names in a folder, but for partial folders and what a file system keeps at its top."""
    kept = {_LOST_AND_FOUND} if os.path.ismount(folder) else set()
    return [name for name in _names(folder) if not name.startswith(PREFIX) and name not in kept]


def lock(folder: Path, *, wait: bool = False) -> int | None:
    """Lock a folder.

    Returns:
        A descriptor that holds the lock until it is closed, or None where the file system has no locks.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: it is gone.
        OSError: it is no folder, or cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs from ``replace`` in a folder, where it is there and the file system has locks."""
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = lock(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _prefix() -> str:
    """Of names of this start of this machine: locks of another machine may not be seen over a network."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        boot = "local"
    return f"{PREFIX}{boot}-"


def _settle(partial: Path) -> None:
    """Bring what was begun to one of its two ends, and remove the folder."""
    if not partial.exists():
        return
    moved = "new" if (partial / "replaced").exists() else "old"
    if (partial / moved).is_dir():
        for name in _names(partial / moved):
            _move(partial / moved / name, partial.parent / name, partial)
    shutil.rmtree(partial, ignore_errors=True)


def _move(source: Path, target: Path, partial: Path) -> None:
    """Move a file or folder, in the place of what has the name: the source goes when the target is whole."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR):
            _remove(target)
            source.rename(target)
        elif error.errno == errno.EXDEV:  # a folder in a lower layer of an overlay
            scratch = partial / "scratch"
            _remove(scratch)
            shutil.copytree(source, scratch, symlinks=True)
            scratch.rename(target)
            _remove(source)
        else:
            raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
