"""Configuration of a Mamba-1 model, and the published sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from mamba_export.contract import SELECTIVE_SCAN
from mamba_export.contract.spec import Operator
from mamba_export.fields import Boolean, Choice, Either, Integer, Number, OrNone, Rule
from mamba_export.models.config import ModelConfig


@dataclass(frozen=True)
class MambaConfig(ModelConfig):
    """Shape and options of a Mamba-1 language model or backbone.

    Args:
        dt_rank: rank of the step size's projection, or "auto" for ceil(d_model / 16).
        bcdt_norm_epsilon: epsilon of FalconMamba's weightless RMSNorm on B, C and dt; None for none.
        exact_zoh: the scan discretises B by exact zero-order hold, where every published model has ``dt B``.
            Weights are of the one or the other: they are trained with it.

    The others are ``ModelConfig``'s.

    Raises:
        MambaExportError: a value is out of range; the message names it.
    """

    dt_rank: int | str = "auto"
    bcdt_norm_epsilon: float | None = None
    exact_zoh: bool = False

    mixer: ClassVar[str] = "mamba"
    operator: ClassVar[Operator] = SELECTIVE_SCAN
    RULES: ClassVar[dict[str, Rule[Any]]] = {
        **ModelConfig.RULES,
        "dt_rank": Either(Choice(["auto"]), Integer(1)),
        "bcdt_norm_epsilon": OrNone(Number(0)),
        "exact_zoh": Boolean(),
    }

    @property
    def rank(self) -> int:
        """Rank of the step size's projection, resolved ("auto": ceil(d_model / 16))."""
        return math.ceil(self.d_model / 16) if self.dt_rank == "auto" else int(self.dt_rank)

    @property
    def conv_channels(self) -> int:
        """d_inner: the convolution is over the scan's input alone."""
        return self.inner

    @property
    def recurrent_shape(self) -> tuple[int, ...]:
        """(d_inner, d_state)."""
        return self.inner, self.d_state

    @property
    def sizes(self) -> dict[str, int | str]:
        """What two configurations of one checkpoint agree in, resolved."""
        return {**super().sizes, "dt_rank": self.rank, "exact_zoh": self.exact_zoh}

    @classmethod
    def _published_sizes(cls) -> dict[str, MambaConfig]:
        return PUBLISHED_SIZES


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
