"""Calibrated codes: those that change a product's outputs least over the inputs that a text gives it.

GPTQ (arXiv:2210.17323, algorithm 1): weights are rounded input by input, and what rounding one input's weights
changes in the outputs is made up for by the weights of the inputs that are still to be rounded. Scales are
those of each block at the time that it is reached.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mamba_export.contract.weights import Weights
from mamba_export.packing.rounding import Packed, block_scales, code_dtype, nearest

_DAMPING = 0.01
"""Share of the mean square input that is added to every one: a text tells little of some directions."""


def pack_calibrated(
    matrix: np.ndarray, squares: Tensor, weights: Weights, dtype: np.dtype
) -> Packed:
    """A matrix with codes that fit a product's inputs.

    Args:
        matrix: (K, N), of any floating dtype; ``weights.block`` divides K.
        squares: (K, K) fp32, the sum of x xT over inputs x of the product.
        weights: which codes.
        dtype: of the scales.
    """
    left = torch.from_numpy(matrix.astype(np.float32))
    factor = _inverse_factor(squares)
    codes: list[np.ndarray] = []
    scales: list[np.ndarray] = []
    zero_points: list[np.ndarray] = []
    for start in range(0, len(left), weights.block):
        rows = left[start : start + weights.block]
        scale, zero_point = block_scales(rows.numpy()[None], weights, dtype)
        wide = scale.astype(np.float32)
        errors = torch.empty_like(rows)
        for i in range(weights.block):
            at = start + i
            code = nearest(rows[i].numpy()[None], wide, zero_point, weights)
            codes.append(code)
            value = (code if zero_point is None else code - zero_point) * wide
            errors[i] = (rows[i] - torch.from_numpy(value[0])) / factor[at, at]
            end = start + weights.block
            rows[i + 1 :] -= torch.outer(factor[at, at + 1 : end], errors[i])
        rest = start + weights.block
        left[rest:] -= factor[start:rest, rest:].T @ errors
        scales.append(scale)
        if zero_point is not None:
            zero_points.append(zero_point)
    kind = code_dtype(weights)
    return Packed(
        np.concatenate(codes).astype(kind),
        np.concatenate(scales),
        np.concatenate(zero_points).astype(kind) if zero_points else None,
    )


def _inverse_factor(squares: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped squares."""
    damped = squares.clone()
    diagonal = damped.diagonal()
    diagonal += _DAMPING * diagonal.mean().clamp(min=torch.finfo(damped.dtype).tiny)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
