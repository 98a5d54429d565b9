"""The one reader of files that others wrote: checkpoints' configurations, exported folders, engines, prompts.

Nothing here blocks, runs what it reads or trusts a size. Each fault raises the class that the caller names, in
one line that names the file and, where there is one, the JSON field.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mamba_export.errors import MambaExportError
from mamba_export.printing import printable

BYTES_LIMIT = 1 << 30
JSON_LIMIT = 1 << 28
"""Largest files read whole; the largest tokenizer.json in use is some 35 MB."""

_DEEPEST = 64
# The largest number that files in use hold is transformers' 10**30, for "no length limit".
_MOST_DIGITS = 40
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def open_file(path: str | Path, *, error: type[MambaExportError] = MambaExportError) -> BinaryIO:
    """Open a regular file for reading; a FIFO is refused without waiting for its writer.

    Args:
        path: links are followed.
        error: class of what is raised.

    Raises:
        MambaExportError: it is missing, no regular file, or may not be read; of type ``error``.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except FileNotFoundError:
        what = (
            " is a link to a file that is not there"
            if Path(path).is_symlink()
            else ": no such file"
        )
        raise error(f"{path}{what}") from None
    except OSError as reason:
        raise error(f"{path} cannot be read ({reason.strerror})") from reason
    except ValueError as reason:  # a zero byte, or a surrogate that stands for no byte
        raise error(f"{str(path)!r} is no path ({reason})") from reason
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise error(f"{path} is {_kind(mode)}, expected a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device"


def check_file(path: str | Path, *, error: type[MambaExportError] = MambaExportError) -> None:
    """Raise what ``open_file`` raises, before a library is given the path."""
    open_file(path, error=error).close()


def is_there(path: str | Path, *, error: type[MambaExportError] = MambaExportError) -> bool:
    """Whether a path names anything, a link that leads nowhere too.

    Raises:
        MambaExportError: its folder may not be searched; of type ``error``.
    """
    return _status(path, os.lstat, error) is not None


def is_folder(path: str | Path, *, error: type[MambaExportError] = MambaExportError) -> bool:
    """Whether a path leads to a folder.

    Raises:
        MambaExportError: its folder may not be searched; of type ``error``.
    """
    status = _status(path, os.stat, error)
    return status is not None and stat.S_ISDIR(status.st_mode)


def paths_in(folder: Path, *, error: type[MambaExportError] = MambaExportError) -> list[Path]:
    """What a folder holds, sorted; nothing where there is no such folder.

    Raises:
        MambaExportError: it may not be read; of type ``error``.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as reason:
        raise error(f"{folder} cannot be read ({reason.strerror})") from reason


def _status(
    path: str | Path,
    ask: Callable[[str | Path], os.stat_result],
    error: type[MambaExportError],
) -> os.stat_result | None:
    try:
        return ask(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no path at all
        return None
    except OSError as reason:
        raise error(f"{path} cannot be read ({reason.strerror})") from reason


@contextlib.contextmanager
def utf8_name(path: Path, *, error: type[MambaExportError] = MambaExportError) -> Iterator[str]:
    """A file's name for libraries that take names of UTF-8 alone; what lies beside the file stays beside it.

    Args:
        path: its folders' names may be any bytes.
        error: class of what is raised.

    Yields:
        The path as it is, or where that is not UTF-8 one that leads there while the block runs.

    Raises:
        MambaExportError: the folder may not be read; of type ``error``.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as reason:
            raise error(f"{path.parent} cannot be read ({reason.strerror})") from reason
        try:
            yield f"/proc/self/fd/{folder}/{path.name}"
        finally:
            os.close(folder)
    else:
        yield str(path)


def read_bytes(
    path: str | Path,
    *,
    error: type[MambaExportError] = MambaExportError,
    limit: int = BYTES_LIMIT,
) -> bytes:
    """The content of a regular file.

    Args:
        path: links are followed.
        error: class of what is raised.
        limit: bytes that the file may have.

    Raises:
        MambaExportError: as ``open_file``, or it is larger than ``limit``; of type ``error``.
    """
    try:
        with open_file(path, error=error) as file:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > limit else file.read(limit + 1)
    except OSError as reason:
        raise error(f"{path} cannot be read ({reason.strerror})") from reason
    if max(size, len(content)) > limit:
        raise error(f"{path} has more than {limit} bytes, which is too large for such a file")
    return content


def read_text(
    path: str | Path,
    *,
    error: type[MambaExportError] = MambaExportError,
    limit: int = BYTES_LIMIT,
) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, line ends as they stand.

    Raises:
        MambaExportError: as ``read_bytes``, or it is not UTF-8; of type ``error``.
    """
    content = read_bytes(path, error=error, limit=limit)
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not UTF-8 text (byte {reason.start})") from reason


def read_json(
    path: str | Path,
    *,
    error: type[MambaExportError] = MambaExportError,
    limit: int = JSON_LIMIT,
    remedy: str = "",
    non_finite: bool = False,
) -> Any:
    """What a JSON file holds.

    Args:
        path: links are followed.
        error: class of what is raised.
        limit: bytes that the file may have.
        remedy: what to do where the content is damaged, such as "fetch the file again".
        non_finite: let NaN and Infinity pass, for files of others that hold them in fields that we do
            not read; the fields that we read are then the caller's to check.

    Raises:
        MambaExportError: as ``read_bytes``, or it is not JSON in UTF-8, is nested too deeply, or holds NaN, a
            number beyond float64 or an integer of more than 40 digits; of type ``error``.
    """
    content = read_bytes(path, error=error, limit=limit)
    advice = f": {remedy}" if remedy else ""
    try:
        data = json.loads(content.removeprefix(codecs.BOM_UTF8).decode(), parse_int=_integer)
    except RecursionError:
        raise error(f"{path} is nested too deeply{advice}") from None
    except UnicodeDecodeError as reason:
        what = f"not UTF-8 at byte {reason.start}"
        raise error(f"{path} is not valid JSON ({what}){advice}") from reason
    except ValueError as reason:
        raise error(f"{path} is not valid JSON ({reason}){advice}") from reason
    for field, value in _suspects(data):
        if isinstance(value, _HugeInteger):
            raise error(f"{path}: {field} is an integer of {value.digits} digits{advice}")
        if not isinstance(value, float):
            raise error(f"{path} is nested too deeply{advice}")
        if not non_finite:
            raise error(f"{path}: {field} is {value}, expected a finite number{advice}")
    return data


class _HugeInteger:
    """Stands for an integer that Python would take long to read, or refuse to."""

    def __init__(self, digits: int) -> None:
        self.digits = digits


def _integer(text: str) -> int | _HugeInteger:
    digits = len(text.removeprefix("-"))
    return int(text) if digits <= _MOST_DIGITS else _HugeInteger(digits)


class _Field:
    """Where a value stands in a JSON file, spelled out only in a message: ``tokens.vocab_size``, ``[3]``."""

    def __init__(self, key: str | int | None = None, parent: _Field | None = None) -> None:
        self._key = key
        self._parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1

    def __str__(self) -> str:
        if self._parent is None:
            return "the content"
        before = "" if self._parent._parent is None else str(self._parent)
        if isinstance(self._key, int):
            return f"{before}[{self._key}]"
        key = printable(str(self._key))[:60]
        return f"{before}.{key}" if before else key


def _suspects(data: Any) -> Iterator[tuple[_Field, Any]]:
    """Numbers that are not finite or too long, and containers too deep; no recursion, whatever the depth."""
    waiting = collections.deque([(_Field(), data)] if _is_suspect(data) else [])
    while waiting:
        field, value = waiting.popleft()
        if not isinstance(value, dict | list) or field.depth > _DEEPEST:
            yield field, value
            continue
        items = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [(_Field(key, field), inner) for key, inner in items if _is_suspect(inner)]


def _is_suspect(value: Any) -> bool:
    """Whether it is such a number, or may hold one."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, dict | list | _HugeInteger)
