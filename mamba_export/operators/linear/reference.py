"""The definition, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def linear_reference(x: Tensor, weight: Tensor) -> Tensor:
    """y = x weight^T, as ``torch.nn.Linear`` without a bias.

    Args:
        x: (batch, length, in_features) T.
        weight: (out_features, in_features) T.

    Returns:
        (batch, length, out_features) T.
    """
    return x @ weight.T
