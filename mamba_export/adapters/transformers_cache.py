"""The cache that transformers' mixers and attention layers see while a graph is traced.

transformers 5 keeps its cache in place and takes another path for one token than for many. Here every call
reads the states that came in and leaves the states that go out, on one path for any length.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, cat

from mamba_export.adapters.convolution import convolve, silu_of
from mamba_export.adapters.scan import scan
from mamba_export.operators import state_space_dual
from mamba_export.operators.dtypes import accumulation_dtype


class LayerStates:
    """States of one layer by their names: conv_state, recurrent_state, key, value."""

    def __init__(self, past: dict[str, Tensor]) -> None:
        self.past = past
        self.present: dict[str, Tensor] = {}
        self.scans = 0


class GraphCache:
    """What a model takes as its ``cache``.

    Args:
        layers: the states that come in, by the layer's index.
        past_length: steps that were read before; a tensor's size, so a symbol while a graph is traced.
    """

    def __init__(self, layers: dict[int, LayerStates], past_length: int) -> None:
        self.states = layers
        self.past_length = past_length
        self.current: LayerStates | None = None

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """None: the mixer then takes its path for many tokens, which ``update_conv_state`` continues."""

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """None, for the same reason; ``selective_scan`` takes the state from here."""

    def is_recording_past(self, layer_idx: int) -> bool:
        """No: transformers records the past for assisted decoding alone."""
        return False

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int = 0) -> bool:
        """No: a mixer that asks takes its path for many tokens."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Steps that were read before."""
        return self.past_length

    def update_conv_state(self, x: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        """x (batch, channels, length) as it is: ``convolution``, which is called next, reads the state."""
        self.current = self.states[layer_idx]
        return x

    def update_recurrent_state(
        self, state: Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> Tensor:
        """Keep the state that goes out."""
        self.states[layer_idx].present["recurrent_state"] = state
        return state

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, length, head_dim) behind those of the steps before."""
        layer = self.states[layer_idx]
        layer.present["key"] = cat([layer.past["key"], keys], dim=2)
        layer.present["value"] = cat([layer.past["value"], values], dim=2)
        return layer.present["key"], layer.present["value"]

    def convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        **_: Any,
    ) -> Tensor:
        """In place of a modelling file's ``causal_conv1d_fn``; x (batch, channels, length)."""
        layer = self._layer()
        y, layer.present["conv_state"] = convolve(
            x, weight, bias, layer.past["conv_state"], silu=silu_of(activation)
        )
        return y

    def selective_scan(
        self,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """In place of a modelling file's ``mamba_selective_scan``; shapes as in ``scan.scan``.

        A layer of heads (Zamba) calls it once a head, in their order.
        """
        layer = self._layer()
        state = layer.past["recurrent_state"]
        if state.dim() == 4:
            state = state[:, layer.scans]
        layer.scans += 1
        y, last_state = scan(
            u,
            dt,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            delta_softplus=delta_softplus,
            initial_state=state,
        )
        return y.to(u.dtype), last_state

    def chunk_scan(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """In place of a modelling file's ``mamba2_chunk_scan``; shapes as in ``state_space_dual``.

        The limits of dt hold at every step. transformers has them in this function alone, and its single steps
        go without: there a sequence gives other results whole than step by step.
        """
        wide = accumulation_dtype(x.dtype)
        return state_space_dual(
            x,
            dt,
            A.to(wide),
            B,
            C,
            None if D is None else D.to(wide),
            dt_bias=None if dt_bias is None else dt_bias.to(wide),
            initial_state=self._layer().past["recurrent_state"],
            dt_softplus=dt_softplus,
            dt_min=dt_limit[0],
            dt_max=dt_limit[1],
        )

    def _layer(self) -> LayerStates:
        if self.current is None:
            raise RuntimeError("a mixer called its convolution before it updated its cache")
        return self.current
