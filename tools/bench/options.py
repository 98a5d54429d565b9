"""Values of tools/benchmark.py's options, read from text; each bad one is one line that names the option."""

from __future__ import annotations

import math
import re

from mamba_export.errors import MambaExportError

MOST = 2**31 - 1
_DIGITS = re.compile(r"[0-9]{1,10}")


def names(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def one_of(option: str, name: str, known: tuple[str, ...]) -> str:
    """A name that must be known.

    Raises:
        MambaExportError: it is not.
    """
    if name not in known:
        raise MambaExportError(f"{option} {name!r} is unknown: use {', '.join(known)}")
    return name


def numbers(option: str, text: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """Whole numbers above 0.

    Raises:
        MambaExportError: they are not.
    """
    if text is None:
        return default
    found = tuple(int(part) if _DIGITS.fullmatch(part) else 0 for part in names(text))
    if not found or min(found) < 1 or max(found) > MOST:
        raise MambaExportError(
            f"{option} {text!r}: expected whole numbers from 1 to {MOST}, with commas"
        )
    return found


def seconds(option: str, value: float | None) -> float | None:
    """A time above 0, or None.

    Raises:
        MambaExportError: it is none.
    """
    if value is not None and not 0 < value < math.inf:
        raise MambaExportError(f"{option} {value}: expected seconds above 0")
    return value


def _some(option: str, text: str) -> list[str]:
    found = names(text)
    if not found:
        raise MambaExportError(f"{option} {text!r}: name at least one")
    return found


def dtypes(option: str, text: str) -> tuple[str, ...]:
    """Dtypes of exported files.

    Raises:
        MambaExportError: one is unknown.
    """
    from mamba_export.contract import DTYPES

    return tuple(one_of(option, name, DTYPES) for name in _some(option, text))


def state_dtype(text: str | None, models: tuple[str, ...], dtype: str) -> str | None:
    """Dtype of the recurrent states of every model, whose matrices have the other.

    Raises:
        MambaExportError: a model's states cannot have it.
    """
    from bench.published import config_of
    from mamba_export.models.program import state_dtypes

    for size in models if text is not None else ():
        known = state_dtypes(config_of(size), dtype)
        if text not in known:
            raise MambaExportError(
                f"--state-dtype {text!r}: recurrent states of {size} in {dtype} are {' or '.join(known)}"
            )
    return text


def sizes(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Published sizes.

    Raises:
        MambaExportError: one is unknown.
    """
    from bench import published

    if text is None:
        return default
    return tuple(one_of("--size", name, tuple(published.names())) for name in _some("--size", text))


def shapes(text: str | None) -> tuple[tuple[int, int, int], ...]:
    """(batch, channels, length) of the operators.

    Raises:
        MambaExportError: one is not of those that are timed.
    """
    from bench.gpu_operators import SHAPES

    if text is None:
        return SHAPES
    known = {"x".join(map(str, shape)): shape for shape in SHAPES}
    return tuple(known[one_of("--shape", name, tuple(known))] for name in _some("--shape", text))
