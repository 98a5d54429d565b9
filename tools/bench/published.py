"""Published sizes by the names that options and rows have: "130m" of Mamba-1, "mamba2-130m" of Mamba-2."""

from __future__ import annotations

from collections.abc import Iterator

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
