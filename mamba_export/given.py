"""What callers of the Python API give: paths, numbers, choices, as what they should be or as one clear line.

A user's value may be of any type: numpy's integers and floats are numbers, a path may be text, bytes or an
``os.PathLike``; a bool is no number. Imports errors and fields alone.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from mamba_export import fields
from mamba_export.errors import MambaExportError

_SHOWN = 60
"""Characters of a value that an error shows."""


def shown(value: object) -> str:
    """A value for an error: its text where that is short and of one line, and its type."""
    kind = type(value).__name__
    if value is None or isinstance(value, (bool, int, float, str)):
        return fields.shown(value)
    try:
        text = repr(value)
    except Exception:  # somebody else's __repr__
        return f"of type {kind}"
    if len(text) > _SHOWN or not text.isprintable() or text.startswith("<"):
        return f"of type {kind}"
    return f"{text} (of type {kind})"


def path(value: Any, what: str, error: type[MambaExportError] = MambaExportError) -> Path:
    """A path of the user's, "~" expanded.

    Args:
        value: text, bytes or an ``os.PathLike``.
        what: that it is, for the error, such as "the folder".
        error: class of the error.

    Raises:
        MambaExportError: it is something else, empty, or holds a NUL character.
    """
    try:
        text = os.fsdecode(os.fspath(value))
    except (TypeError, ValueError):
        raise error(f"{what} is {shown(value)}: give a path, as text or a pathlib.Path") from None
    if not text:
        raise error(f"{what} is empty: give a path")
    if "\0" in text:
        raise error(f"{what} has a NUL character in its path: give another")
    found = Path(text)
    with contextlib.suppress(RuntimeError):  # the home of an unknown user: a path that is not there
        found = found.expanduser()
    return found


def is_path(value: object) -> bool:
    """Whether a value is of a type that ``path`` takes."""
    return isinstance(value, (str, bytes, os.PathLike))


def integer(
    value: Any,
    what: str,
    minimum: int,
    maximum: int | None = None,
    error: type[MambaExportError] = MambaExportError,
) -> int:
    """An integer of any kind, numpy's included.

    Raises:
        MambaExportError: it is none (a bool and a float are none), or not in [minimum, maximum].
    """
    number = _index(value)
    if number is None or number < minimum or (maximum is not None and number > maximum):
        limits = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise error(f"{what} is {shown(value)}, expected an integer {limits}")
    return number


def number(
    value: Any,
    what: str,
    expected: str,
    minimum: float,
    maximum: float,
    error: type[MambaExportError] = MambaExportError,
) -> float:
    """A finite number of any kind in [minimum, maximum], numpy's included; a bool is none.

    Args:
        value: the user's.
        what: that it is.
        expected: for the error, such as "a number >= 0".
        minimum, maximum: of what is allowed.
        error: class of the error.

    Raises:
        MambaExportError: it is something else.
    """
    found = math.nan
    value = _scalar(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError, ValueError):
            found = float(value)
    if not (math.isfinite(found) and minimum <= found <= maximum):
        raise error(f"{what} is {shown(value)}, expected {expected}")
    return found


def one_of(
    value: Any,
    what: str,
    known: Iterable[str],
    error: type[MambaExportError] = MambaExportError,
) -> str:
    """A word of a list.

    Raises:
        MambaExportError: it is none of them.
    """
    names = tuple(known)
    if isinstance(value, str) and value in names:
        return str(value)
    raise error(f"{what} {shown(value)} is unknown: use one of {', '.join(names)}")


def flag(value: Any, what: str, error: type[MambaExportError] = MambaExportError) -> bool:
    """True or False, numpy's included.

    Raises:
        MambaExportError: it is something else, which may mean anything.
    """
    found = _scalar(value)
    if isinstance(found, bool):
        return found
    raise error(f"{what} is {shown(value)}, expected True or False")


def listed(
    value: Any, what: str, expected: str, error: type[MambaExportError] = MambaExportError
) -> list[Any]:
    """The elements of a list, a tuple, an array or a generator.

    Args:
        value: the user's.
        what: that it is.
        expected: for the error, such as "a list of names".
        error: class of the error.

    Raises:
        MambaExportError: it is a text, a mapping, or has no elements in order.
    """
    if not isinstance(value, (str, bytes, bytearray, Mapping, Set)):
        with contextlib.suppress(TypeError):  # no iterable, or an array without axes
            return list(value)
    raise error(f"{what} is {shown(value)}, expected {expected}")


def function(value: Any, what: str, error: type[MambaExportError] = MambaExportError) -> None:
    """Raise MambaExportError unless a value is None or may be called."""
    if value is not None and not callable(value):
        raise error(f"{what} is {shown(value)}: give a function, or None")


def _index(value: Any) -> int | None:
    value = _scalar(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return None


def _scalar(value: Any) -> Any:
    """What an array or a tensor without axes holds; anything else as it is."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        with contextlib.suppress(Exception):  # a tensor on a device that is not there
            return value.item()
    return value
