"""Configuration of a Mamba model, and the published sizes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from mamba_export.errors import MambaExportError


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
        for name, minimum in (
            ("d_model", 1), ("n_layer", 1), ("vocab_size", 0), ("d_state", 1), ("d_conv", 2), ("expand", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < minimum:
                raise MambaExportError(
                    f"config: {name} is {value!r}, expected an integer >= {minimum}"
                )
        if self.d_inner is not None and self.d_inner < 1:
            raise MambaExportError(
                f"config: d_inner is {self.d_inner!r}, expected a positive integer"
            )
        if self.dt_rank != "auto" and (not isinstance(self.dt_rank, int) or self.dt_rank < 1):
            raise MambaExportError(
                f'config: dt_rank is {self.dt_rank!r}, expected "auto" or a positive integer'
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
    def published(cls, size: str) -> MambaConfig:
        """Configuration of a published checkpoint: one of ``PUBLISHED_SIZES``.

        Raises:
            MambaExportError: the size is unknown.
        """
        if size not in PUBLISHED_SIZES:
            raise MambaExportError(
                f"unknown size {size!r}: the published ones are {', '.join(PUBLISHED_SIZES)}"
            )
        return PUBLISHED_SIZES[size]


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
