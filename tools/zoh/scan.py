"""How far the two discretisations of B are apart as the step grows: of the input's weight, and of a scan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mamba_export.operators import selective_scan
from mamba_export.operators.selective_scan.reference import phi1
from report.record import Axis, Plot, Series

STATES = 16
"""Of a channel, with A = -1 ... -16: as models begin (arXiv:2312.00752, section 3.6)."""


def coefficient_difference(x: Tensor) -> Tensor:
    """How much larger dt is than (exp(dt A) - 1) / A, as a share of the latter; x = dt |A|, float64."""
    return 1 / phi1(-x) - 1


@torch.no_grad()
def scan_difference(sizes: Sequence[float], rates: Tensor, spread: float) -> list[float]:
    """Relative difference (norm) of a scan's outputs by the two rules, at each of ``sizes``.

    Args:
        sizes: median of dt times mean |A|.
        rates: (d_state,), -A.
        spread: standard deviation of the logarithm of dt over steps and channels; 0 for steps that are alike.
    """
    channels, length = 32, 512
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    u, noise = normal(1, length, channels), normal(1, length, channels)
    B, C = normal(1, length, len(rates)), normal(1, length, len(rates))
    A = -rates.double().expand(channels, -1).contiguous()
    found = []
    for size in sizes:
        dt = size / rates.mean().item() * torch.exp(spread * noise)
        euler, exact = (
            selective_scan(u, dt, A, B, C, delta_softplus=False, exact_zoh=rule)[0]
            for rule in (False, True)
        )
        found.append(((euler - exact).norm() / exact.norm()).item())
    return found


def scan_plot(points: int) -> Plot:
    """Both differences against dt |A|."""
    x = np.logspace(-4, math.log10(20), points)
    sizes = [float(one) for one in x]
    one_rate, rates = torch.ones(1), torch.arange(1.0, STATES + 1)
    curves = {
        "coefficient of the input": coefficient_difference(torch.from_numpy(x)).tolist(),
        "output, A = -1 ... -16, steps alike": scan_difference(sizes, rates, 0.0),
        "output, A = -1 ... -16, steps vary e-fold": scan_difference(sizes, rates, 1.0),
        "output, A = -1, steps vary e-fold": scan_difference(sizes, one_rate, 1.0),
    }
    half = Series("dt |A| / 2", sizes, [one / 2 for one in sizes], "dashed")
    return Plot(
        "dt B against exact zero-order hold",
        Axis("dt |A| (median dt, mean |A|)", "log"),
        Axis("relative difference", "log"),
        [*(Series(name, sizes, y) for name, y in curves.items()), half],
        "Of a scan over 512 steps with random inputs, in float64: the norm of the outputs' difference. Euler's "
        "rule gives the input too much weight: half of dt |A| too much while that is small.",
    )
