"""Configuration of a Mamba model, and the published sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mamba_export.errors import MambaExportError
from mamba_export.fields import (
    END_TOKENS,
    LARGEST_SIZE,
    Boolean,
    Choice,
    Either,
    Integer,
    Number,
    OrNone,
    Rule,
)
from mamba_export.given import shown


@dataclass(frozen=True)
class MambaConfig:
    """Shape and options of a Mamba language model or backbone.

    Args:
        d_model: width of the residual stream.
        n_layer: number of blocks.
        vocab_size: rows of the embedding, padding included; 0 for a backbone without tokens.
        d_state: states a channel (N in the paper).
        d_conv: taps of the causal convolution, at least 2.
        expand: d_inner = expand * d_model where d_inner is not given.
        d_inner: channels of the scan, or None.
        dt_rank: rank of the step size's projection, or "auto" for ceil(d_model / 16).
        bias: in_proj and out_proj carry a bias.
        conv_bias: the convolution carries a bias.
        norm_epsilon: epsilon of every RMSNorm of the residual stream.
        bcdt_norm_epsilon: epsilon of FalconMamba's weightless RMSNorm on B, C and dt; None for none.
        tie_embeddings: the output projection is the embedding.
        residual_in_fp32: keep the residual stream in fp32 whatever the weights' dtype.
        dt_min, dt_max, dt_floor: bounds of the step size at initialisation (paper, section 3.6).
        eos_token_id: token that ends a text, several of which any one does, or None.

    Raises:
        MambaExportError: a value is out of range; the message names it.
    """

    d_model: int
    n_layer: int
    vocab_size: int = 0
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    d_inner: int | None = None
    dt_rank: int | str = "auto"
    bias: bool = False
    conv_bias: bool = True
    norm_epsilon: float = 1e-5
    bcdt_norm_epsilon: float | None = None
    tie_embeddings: bool = True
    residual_in_fp32: bool = True
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_floor: float = 1e-4
    eos_token_id: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            value = getattr(self, name)
            if not rule.holds(value):
                raise MambaExportError(f"config: {name} is {shown(value)}, expected {rule}")
        if self.inner > LARGEST_SIZE:
            raise MambaExportError(
                f"config: d_model {self.d_model} times expand {self.expand} is more than {LARGEST_SIZE}"
            )

    @property
    def inner(self) -> int:
        """Channels of the scan, resolved."""
        return self.d_inner if self.d_inner is not None else self.expand * self.d_model

    @property
    def rank(self) -> int:
        """Rank of the step size's projection, resolved ("auto": ceil(d_model / 16))."""
        return math.ceil(self.d_model / 16) if self.dt_rank == "auto" else int(self.dt_rank)

    def replace(self, **changes: object) -> MambaConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @classmethod
    def of(cls, config: object) -> MambaConfig:
        """A configuration, checked to be one. MambaExportError for anything else."""
        if not isinstance(config, MambaConfig):
            raise MambaExportError(f"config is of type {type(config).__name__}: give a MambaConfig")
        return config

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> MambaConfig:
        """A configuration from its fields, as ``dataclasses.asdict`` gives them.

        Raises:
            MambaExportError: a field is missing, unknown or out of range.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [str(name) for name in fields if name not in known]
        if unknown:
            raise MambaExportError(f"config: {shown(unknown[0])} is no field")
        for name, field in known.items():
            if field.default is dataclasses.MISSING and name not in fields:
                raise MambaExportError(f"config: {name} is missing")
        return cls(**fields)

    @classmethod
    def published(cls, size: str) -> MambaConfig:
        """Configuration of a published checkpoint: one of ``PUBLISHED_SIZES``.

        Raises:
            MambaExportError: the size is unknown.
        """
        if not isinstance(size, str) or size not in PUBLISHED_SIZES:
            raise MambaExportError(
                f"unknown size {shown(size)}: the published ones are {', '.join(PUBLISHED_SIZES)}"
            )
        return PUBLISHED_SIZES[size]


RULES: dict[str, Rule[Any]] = {
    "d_model": Integer(1),
    "n_layer": Integer(1),
    "vocab_size": Integer(0),
    "d_state": Integer(1),
    "d_conv": Integer(2),
    "expand": Integer(1),
    "d_inner": OrNone(Integer(1)),
    "dt_rank": Either(Choice(["auto"]), Integer(1)),
    "bias": Boolean(),
    "conv_bias": Boolean(),
    "norm_epsilon": Number(0),
    "bcdt_norm_epsilon": OrNone(Number(0)),
    "tie_embeddings": Boolean(),
    "residual_in_fp32": Boolean(),
    "dt_min": Number(above=0),
    "dt_max": Number(above=0),
    "dt_floor": Number(0),
    "eos_token_id": END_TOKENS,
}
"""What each field of ``MambaConfig`` must be."""


def _gpt_neox(d_model: int, n_layer: int) -> MambaConfig:
    # 50277 tokens of the GPT-NeoX tokenizer, padded to a multiple of 8.
    return MambaConfig(d_model=d_model, n_layer=n_layer, vocab_size=50280, eos_token_id=0)


PUBLISHED_SIZES = {
    "130m": _gpt_neox(768, 24),
    "370m": _gpt_neox(1024, 48),
    "790m": _gpt_neox(1536, 48),
    "1.4b": _gpt_neox(2048, 48),
    "2.8b": _gpt_neox(2560, 64),
    "falcon-7b": MambaConfig(
        d_model=4096,
        n_layer=64,
        vocab_size=65024,
        bcdt_norm_epsilon=1e-6,
        tie_embeddings=False,
        eos_token_id=11,
    ),
}
"""Sizes of the state-spaces checkpoints (paper, table 10 and the released configurations) and FalconMamba."""
