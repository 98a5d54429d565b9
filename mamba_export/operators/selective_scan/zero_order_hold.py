"""What exact zero-order hold makes of a step's input, and its slope: for the vectorised path.

The input ``u B`` of a step enters the state with the weight ``hold = (exp(dt A) - 1) / A``, the integral of
exp(s A) over the step, where Euler's rule has ``dt``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEAST = 1e-20
_SERIES_BELOW = 0.5
_SERIES = [1 / (math.factorial(k) * (k + 2)) for k in range(14)]


def divisible(A: Tensor) -> Tensor:
    """A, where what is next to 0 is a number that can be divided by: ``hold`` is dt for both."""
    return torch.where(A.abs() < _LEAST, -_LEAST, A)


def hold(dt_A: Tensor, A: Tensor) -> Tensor:
    """``(exp(dt A) - 1) / A``, precise however small dt A is; A as ``divisible`` gives it."""
    return torch.expm1(dt_A).div_(A)


def hold_slope(dt: Tensor, dt_A: Tensor, A: Tensor, decay: Tensor, held: Tensor) -> Tensor:
    """The derivative of ``hold`` by A: ``(dt exp(dt A) - hold) / A``.

    The two terms cancel where dt A is small; there it is summed as dt^2 times the series
    ``sum_k (dt A)^k / (k! (k + 2))``.

    Args:
        dt: the step, of a shape that broadcasts to dt_A's.
        dt_A, A: their product, and A as ``divisible`` gives it.
        decay: exp(dt A).
        held: ``hold(dt_A, A)``.
    """
    is_small = dt_A.abs() < _SERIES_BELOW
    near = torch.where(is_small, dt_A, 0)
    series = torch.full_like(near, _SERIES[-1])
    for coefficient in reversed(_SERIES[:-1]):
        series.mul_(near).add_(coefficient)
    return torch.where(is_small, series * dt * dt, (dt * decay - held) / A)
