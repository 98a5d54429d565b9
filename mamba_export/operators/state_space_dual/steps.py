"""Steps and decays of a call: small tensors, (batch, length, heads), that every chunked form starts from."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def steps_and_exponents(
    dt: Tensor,
    A: Tensor,
    log_decay: Tensor | None,
    dt_bias: Tensor,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor]:
    """Step sizes behind bias, softplus and limits, and the decays' exponents.

    Args:
        dt: (batch, length, heads), in the accumulation dtype as everything here.
        A, dt_bias: (heads,).
        log_decay: (batch, length, heads), or None.
        dt_softplus, dt_min, dt_max: as in ``state_space_dual_reference``.

    Returns:
        Two tensors (batch, length, heads); the exponents are at most 0.
    """
    step = dt + dt_bias
    if dt_softplus:
        step = F.softplus(step)
    step = step.clamp(dt_min, dt_max)
    exponent = step * A
    return step, exponent if log_decay is None else exponent + log_decay
