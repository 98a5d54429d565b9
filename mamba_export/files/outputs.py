"""``new_folder``, ``new_files`` and ``new_file``: outputs that appear whole or not at all.

Work goes to a partial folder (``partial.py``) and moves to its place at the end. On any error, Ctrl-C or other
exception the partial folder and the parent folders that were made go again, and what stood there stands.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mamba_export import given
from mamba_export.errors import MambaExportError
from mamba_export.files import renames
from mamba_export.files.locks import locked
from mamba_export.files.partial import PREFIX, Partial, sweep
from mamba_export.files.paths import absolute, real
from mamba_export.files.replaceable import check_name, check_ours, check_place, exists
from mamba_export.interrupts import deferred

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it would be larger than a file may be here (ulimit -f, or the file system's limit)",
}


@contextlib.contextmanager
def new_folder(
    out: str | Path, *, marker: str, force: bool = False, sources: Iterable[str | Path] = ()
) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``out`` when the block ends well.

    Two runs that write one ``out`` at once: without ``force`` one of them gets an error, with it the one that
    ends last wins, wholly. A folder that cannot be renamed, such as a mounted volume, gets the files instead.

    Args:
        out: the folder to make.
        marker: name of a file that the block always writes: what we wrote is known by it.
        force: replace an existing folder that holds ``marker``, or nothing.
        sources: files and folders that the block reads. With ``force``, ``out`` may be none of them, hold none
            and lie in none.

    Raises:
        MambaExportError: ``out`` is there and must not be replaced, or something cannot be written. An OSError
            of the block becomes one that names the file.
    """
    out = given.path(out, "the output")
    check_name(out)
    with _one_line(out):
        out = absolute(out)
        read = [absolute(source) for source in sources]

    def check() -> bool:
        return check_place(out, force=force, marker=marker, sources=read)

    with contextlib.ExitStack() as partials:
        with _one_line(out):
            sweep(out.parent)
            sweep(out)
            with locked(out):
                fixed = check()
            partial = partials.enter_context(_partial(out if fixed else out.parent))
        with _one_line(out):
            yield partial.new
            if not fixed and _rename(partial.new, out, marker, force, check):
                return
            if not fixed:
                inside = partials.enter_context(_partial(out))
                for path in partial.new.iterdir():
                    shutil.move(path, inside.new)
                partial = inside
            partial.replace(marker, everything=True, check=check)


@contextlib.contextmanager
def new_files(
    folder: str | Path,
    *,
    last: str,
    check: Callable[[], object] = lambda: None,
    error: Callable[[str], MambaExportError] = MambaExportError,
) -> Iterator[Path]:
    """Yield a temporary folder whose files move into ``folder`` when the block ends well.

    Files of the same names are replaced, all of them or none; others stay.

    Args:
        folder: is made where it is missing.
        last: the file that describes the others: a reader that finds it finds those that it describes.
        check: raises where the files must not move after all, such as when another run was quicker.
        error: makes an error of a line.

    Raises:
        MambaExportError: something cannot be written.
    """
    with contextlib.ExitStack() as partials:
        with _one_line(Path(folder), error):
            home = real(absolute(folder))
            sweep(home)
            partial = partials.enter_context(_partial(home))
        with _one_line(Path(folder), error):
            yield partial.new
            partial.replace(last, everything=False, check=check)


@contextlib.contextmanager
def new_file(
    path: str | Path, *, error: Callable[[str], MambaExportError] = MambaExportError
) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends well, in place of a file that is there.

    Args:
        path: its folder exists; of a link the file that it leads to is replaced.
        error: makes an error of a line.

    Raises:
        MambaExportError: it is there and no regular file, or it cannot be written.
    """
    with contextlib.ExitStack() as partials:
        with _one_line(Path(path), error):
            path = real(absolute(path))
            if path.exists() and not path.is_file():
                raise error(f"{path} is not a regular file: give another")
            if not path.parent.is_dir():
                raise error(f"{path}: cannot be written (there is no folder {path.parent})")
            sweep(path.parent)
            partial = partials.enter_context(_partial(path.parent))
        with _one_line(path, error):
            yield partial.new / path.name
            if path.exists():
                shutil.copymode(path, partial.new / path.name)
            (partial.new / path.name).replace(path)


@contextlib.contextmanager
def _partial(home: Path) -> Iterator[Partial]:
    """A partial folder in ``home``, which is made where it is missing; at the end both are as they were."""
    partial = Partial(home)
    try:
        partial.make()
        yield partial
    finally:
        partial.end()


def _rename(new: Path, out: Path, marker: str, force: bool, check: Callable[[], object]) -> bool:
    """Put a folder in its place in one step; False where that cannot be done here."""
    while True:
        try:
            with deferred():
                renames.onto_nothing(new, out)
            return True
        except FileExistsError:
            if not force:
                raise exists(out) from None
        with locked(out):
            check()
        with deferred():
            try:
                renames.exchange(new, out)
            except FileNotFoundError:  # what was there went away meanwhile
                continue
            except OSError as error:
                if error.errno not in renames.IMPOSSIBLE:
                    raise
                return False
            try:
                check_ours(new, out, marker)  # what stood there at that very moment
            except BaseException:
                renames.exchange(new, out)
                raise
            return True


@contextlib.contextmanager
def _one_line(
    out: Path, error: Callable[[str], MambaExportError] = MambaExportError
) -> Iterator[None]:
    """OSErrors as one line that names the file, in the place where it is to be."""
    try:
        yield
    except OSError as cause:
        named = cause.filename
        path = Path(os.fsdecode(named)) if isinstance(named, (str, bytes)) else out
        hidden = [index for index, part in enumerate(path.parts) if part.startswith(PREFIX)]
        if hidden:  # in a partial folder's "new"
            inner = path.parts[hidden[0] + 2 :]
            path = out if inner == (out.name,) else out.joinpath(*inner)
        reason = _FULL.get(cause.errno or 0)
        if reason is not None:
            raise error(f"{path}: {reason}; nothing was written") from cause
        verb = "be written" if hidden or path in (out, *out.parents) else "be read or written"
        raise error(f"{path}: cannot {verb} ({cause.strerror or cause})") from cause
