"""The hidden folder in which a run prepares what it writes, and what becomes of it when a run is killed.

A partial folder lies beside what it is to become, or in the folder that its files go to. Its run holds a lock
on it, which the system drops when the process ends in whatever way: so the next run can tell a dead one from
a living one, bring its work to an end and take it away. Inside lie

- ``new``: what is prepared;
- ``old``: files of the folder around it that were moved away, while that is going on;
- ``replaced``: the same once all of them are there; from that moment on the new files are the right ones.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from mamba_export.files.locks import lock, locked
from mamba_export.interrupts import deferred

PREFIX = ".mamba_export.partial-"
_LOST_AND_FOUND = "lost+found"  # the file system's own, at the top of a volume
_ATTEMPTS = 100


class Partial:
    """A partial folder of this run.

    Args:
        home: the folder that it lies in. Nothing is made before ``make``.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._made: list[Path] = []  # of home and the folders above it
        self._lock: int | None = None
        self._rename()

    @property
    def new(self) -> Path:
        """What is prepared goes there."""
        return self.path / "new"

    def make(self) -> None:
        """Make it, locked, and the folders above it that are missing.

        Raises:
            OSError: it cannot be made; ``end`` takes back what was.
        """
        _begun[self] = _here()  # before anything is there, so that ``end_left`` finds it
        for attempt in range(_ATTEMPTS):
            try:
                self._make_home()
                self._make()
                return
            except (
                FileNotFoundError
            ):  # another run that ended took a parent away that both had made
                if attempt == _ATTEMPTS - 1:
                    raise
                self._rename()

    def _rename(self) -> None:
        self.path = self.home / f"{_prefix()}{secrets.token_hex(6)}"

    def _make_home(self) -> None:
        missing = []
        folder = self.home
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            self._made.append(path)
            try:
                path.mkdir()
            except FileExistsError:
                self._made.remove(path)

    def _make(self) -> None:
        """Make the folder itself.

        Raises:
            FileNotFoundError: ``home`` is missing, or another run took the new folder for a dead one's.
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
        (``sweep``); what another signal's handler raises comes at the end. A reader never sees a mixture
        beside ``last``.

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
            with deferred():
                old.mkdir()
                for name in sorted(there, key=lambda name: name != last):
                    _move(self.home / name, old / name, self.path)
                old.rename(self.path / "replaced")
                for name in incoming:
                    _move(self.new / name, self.home / name, self.path)

    def end(self) -> None:
        """Settle and remove it, whatever was done, and the folders made above it; may be called again."""
        with deferred():
            with contextlib.suppress(OSError):
                _settle(self.path)
            if not self.path.exists():
                if self._lock is not None:
                    os.close(self._lock)
                    self._lock = None
                _begun.pop(self, None)
            for path in reversed(self._made):
                with contextlib.suppress(
                    OSError
                ):  # not empty: it holds the output, or another run's
                    path.rmdir()


_begun: dict[Partial, tuple[int, int]] = {}
"""Partial folders that were not ended yet, and who began them."""


def _here() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()  # a fork has a copy of what is its parent's


def begun() -> list[Partial]:
    """The partial folders of this thread that were not ended yet."""
    return [partial for partial, owner in [*_begun.items()] if owner == _here()]


@atexit.register
def end_left(but: Collection[Partial] = ()) -> None:
    """End the partial folders of this thread, but for some.

    Their blocks do that, but for a block whose end was not run: a signal may come in the very call of it.
    """
    for partial in begun():
        if partial not in but:
            partial.end()


def sweep(home: Path) -> None:
    """Bring to an end what runs that are dead left in a folder; the living ones' stay."""
    try:
        with os.scandir(home) as found:
            names = [entry.name for entry in found if entry.name.startswith(_prefix())]
    except OSError:
        return
    for name in names:
        path = home / name
        with deferred(), contextlib.suppress(OSError):
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
