"""Mixture of experts without a loop over tokens: every expert on every token, weighted by the router."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def dense_experts(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """In place of ``forward`` of transformers' experts, whose loop depends on the data.

    An expert that the router did not choose has weight 0. This costs the number of experts over the chosen ones
    in arithmetic, and is one graph for any number of tokens.

    Args:
        self: has down_proj (experts, d_model, width), and gate_up_proj (experts, 2 * width, d_model) or without
            a gate up_proj (experts, width, d_model).
        hidden_states: (tokens, d_model).
        top_k_index, top_k_weights: (tokens, chosen).

    Returns:
        (tokens, d_model).
    """
    shape = (hidden_states.shape[0], self.num_experts)
    weights = top_k_weights.new_zeros(shape).scatter(1, top_k_index, top_k_weights)
    if hasattr(self, "gate_up_proj"):
        gate_up = torch.matmul(hidden_states, self.gate_up_proj.transpose(1, 2))
        gate, up = gate_up.chunk(2, dim=-1)
        inner = self.act_fn(gate) * up
    else:
        inner = self.act_fn(torch.matmul(hidden_states, self.up_proj.transpose(1, 2)))
    y = torch.matmul(inner, self.down_proj.transpose(1, 2))
    return (y * weights.t().unsqueeze(-1)).sum(0).to(hidden_states.dtype)
