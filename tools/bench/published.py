"""Published sizes by the names that options and rows have: "130m" of Mamba-1, "mamba2-130m" of Mamba-2."""

from __future__ import annotations

from collections.abc import Iterator

from bench.limits import layer_weights
from mamba_export.models import (
    PUBLISHED_MAMBA2_SIZES,
    PUBLISHED_SIZES,
    Mamba2Config,
    MambaConfig,
    ModelConfig,
)

_MAMBA2 = "mamba2-"


def names() -> Iterator[str]:
    """Every name."""
    yield from PUBLISHED_SIZES
    yield from (_MAMBA2 + size for size in PUBLISHED_MAMBA2_SIZES)


def config_of(name: str) -> ModelConfig:
    """Its configuration.

    Raises:
        MambaExportError: the name is unknown.
    """
    if name.startswith(_MAMBA2):
        return Mamba2Config.published(name.removeprefix(_MAMBA2))
    return MambaConfig.published(name)


def size_order(name: str) -> tuple[bool, int]:
    """What models are sorted by: Mamba before Mamba-2, then small before large.

    Raises:
        MambaExportError: the name is unknown.
    """
    config = config_of(name)
    weights = config.n_layer * layer_weights(config) + config.vocab_size * config.d_model
    return name.startswith(_MAMBA2), weights
