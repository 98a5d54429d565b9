"""The gated norm of transformers' Mamba-2 blocks as our operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mamba_export.operators import gated_rms_norm
from mamba_export.operators.dtypes import accumulation_dtype


def gated_norm(self: Any, hidden_states: Tensor, gate: Tensor) -> Tensor:
    """In place of ``forward`` of transformers' gated norms.

    Args:
        self: has weight (width,), variance_epsilon, group_size or n_groups, and in some norm_before_gate.
        hidden_states, gate: (batch, length, width).

    Returns:
        (batch, length, width) in the dtype of ``hidden_states``.
    """
    width = self.weight.numel()
    groups = self.n_groups if hasattr(self, "n_groups") else width // self.group_size
    return gated_rms_norm(
        hidden_states,
        gate.to(hidden_states.dtype),
        self.weight.to(accumulation_dtype(hidden_states.dtype)),
        groups=groups,
        epsilon=self.variance_epsilon,
        norm_before_gate=getattr(self, "norm_before_gate", False),
    )
