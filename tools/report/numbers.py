"""Numbers for people: in cells, beside axes, and where the ticks of an axis stand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from report.shape import Cell

_KILO = {"log2": 1024, "log": 1000, "linear": 1000}
_MOST_TICKS = 7
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def cell_text(value: Cell) -> str:
    """A cell: integers whole, others as they are written or with four digits, a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (value.is_integer() and 1000 <= abs(value) < 1e15):
        return f"{int(value):,}"
    if len(repr(value).replace(".", "").lstrip("-0")) <= 4:
        return repr(value)
    if abs(value) >= 1e15 or abs(value) < 1e-4:
        return f"{value:.3e}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def tick_text(value: float, scale: str) -> str:
    """A tick: 4K and 1M, of powers of two where the axis has those, and powers of ten below 0.01."""
    kilo = _KILO[scale]
    if abs(value) >= kilo and not (scale == "linear" and abs(value) < 10_000):
        step = min(int(math.log(abs(value) * (1 + 1e-9), kilo)), 4)
        return f"{value / kilo**step:.4g}{' KMGT'[step]}"
    if value and abs(value) < 0.01:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        if mantissa == "1.00":
            return f"10{str(int(exponent)).translate(_RAISED)}"
    return f"{value:.4g}"


def ticks(low: float, high: float, scale: str) -> list[float]:
    """Where the ticks of an axis from ``low`` to ``high`` stand: at most some seven of them."""
    if scale == "linear":
        return _linear(low, high)
    base = 2 if scale == "log2" else 10
    first, last = (
        math.ceil(math.log(low, base) - 1e-9),
        math.floor(math.log(high, base) + 1e-9),
    )
    if base == 10 and last - first < 2:
        parts = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5)]
        inside = [one for one in parts if low * (1 - 1e-9) <= one <= high * (1 + 1e-9)]
        return inside if len(inside) > 2 else _linear(low, high)
    step = math.ceil((last - first + 1) / _MOST_TICKS)
    return [float(base) ** e for e in reversed(range(last, first - 1, -step))]


def _linear(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def span(values: Sequence[float], scale: str, zero_below: float = 0.5) -> tuple[float, float]:
    """The ends of an axis that holds the values with some room.

    Args:
        values: on the axis.
        scale: of the axis.
        zero_below: a linear axis begins at zero where the lowest value is below this share of the highest.
    """
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    if scale != "linear":
        room = (high / low) ** 0.04 if high > low else 2.0
        return low / room, high * room
    if low >= 0 and low <= zero_below * high:
        low = 0.0
    room = 0.05 * (high - low) or max(abs(high), 1.0)
    return low if low == 0 else low - room, high + room
