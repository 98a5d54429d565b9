"""Configuration of a Mamba-2 model, and the published sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mamba_export.contract import STATE_SPACE_DUAL
from mamba_export.contract.spec import Operator
from mamba_export.errors import MambaExportError
from mamba_export.fields import Boolean, Integer, Number, OrNone, Rule
from mamba_export.models.config import ModelConfig


@dataclass(frozen=True)
class Mamba2Config(ModelConfig):
    """Shape and options of a Mamba-2 language model or backbone.

    Args:
        head_dim: channels of a head (P in the paper); it divides d_inner.
        n_groups: groups of heads that share B and C; it divides the heads.
        gated_norm: out_proj reads a gated RMSNorm, each group of channels normalised alone; False for a gate
            alone.
        norm_before_gate: the gate is behind the norm.
        skip_per_channel: D has a number of each channel, not of each head.
        dt_limit_min, dt_limit_max: limits of the step size after softplus, at every step; None for no upper
            limit.

    The others are ``ModelConfig``'s.

    Raises:
        MambaExportError: a value is out of range; the message names it.
    """

    d_state: int = 128
    head_dim: int = 64
    n_groups: int = 1
    gated_norm: bool = True
    norm_before_gate: bool = False
    skip_per_channel: bool = False
    dt_limit_min: float = 0.0
    dt_limit_max: float | None = None

    mixer: ClassVar[str] = "mamba2"
    operator: ClassVar[Operator] = STATE_SPACE_DUAL
    RULES: ClassVar[dict[str, Rule[Any]]] = {
        **ModelConfig.RULES,
        "head_dim": Integer(1),
        "n_groups": Integer(1),
        "gated_norm": Boolean(),
        "norm_before_gate": Boolean(),
        "skip_per_channel": Boolean(),
        "dt_limit_min": Number(0),
        "dt_limit_max": OrNone(Number(0)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner % self.head_dim:
            raise MambaExportError(
                f"config: head_dim {self.head_dim} does not divide the width d_inner {self.inner}"
            )
        if self.heads % self.n_groups:
            raise MambaExportError(
                f"config: n_groups {self.n_groups} does not divide the {self.heads} heads"
            )
        if self.dt_limit_max is not None and self.dt_limit_max < self.dt_limit_min:
            raise MambaExportError(
                f"config: dt_limit_max {self.dt_limit_max:g} is below dt_limit_min {self.dt_limit_min:g}"
            )

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.inner // self.head_dim

    @property
    def conv_channels(self) -> int:
        """Channels of x, B and C together: the convolution is over all three."""
        return self.inner + 2 * self.n_groups * self.d_state

    @property
    def recurrent_shape(self) -> tuple[int, ...]:
        """(heads, head_dim, d_state)."""
        return self.heads, self.head_dim, self.d_state

    @property
    def sizes(self) -> dict[str, int | str]:
        """What two configurations of one checkpoint agree in, resolved."""
        return {**super().sizes, "head_dim": self.head_dim, "n_groups": self.n_groups}

    @classmethod
    def _published_sizes(cls) -> dict[str, Mamba2Config]:
        return PUBLISHED_MAMBA2_SIZES


def _gpt_neox(d_model: int, n_layer: int) -> Mamba2Config:
    # 50277 tokens of the GPT-NeoX tokenizer, padded to a multiple of 16.
    return Mamba2Config(d_model=d_model, n_layer=n_layer, vocab_size=50288, eos_token_id=0)


PUBLISHED_MAMBA2_SIZES = {
    "130m": _gpt_neox(768, 24),
    "370m": _gpt_neox(1024, 48),
    "780m": _gpt_neox(1536, 48),
    "1.3b": _gpt_neox(2048, 48),
    "2.7b": _gpt_neox(2560, 64),
    "codestral-7b": Mamba2Config(
        d_model=4096,
        n_layer=64,
        vocab_size=32768,
        n_groups=8,
        tie_embeddings=False,
        eos_token_id=2,
    ),
}
"""Sizes of the state-spaces mamba2 checkpoints (their released configurations) and Mamba-Codestral."""
