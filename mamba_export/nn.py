"""The blocks and models under their public name: ``mamba_export.nn.MambaLM`` and the others."""

from mamba_export.models import (
    PUBLISHED_MAMBA2_SIZES,
    PUBLISHED_SIZES,
    TORCH_DTYPES,
    LayerState,
    Mamba,
    Mamba2,
    Mamba2Config,
    MambaBackbone,
    MambaConfig,
    MambaLM,
    RMSNorm,
    State,
    cast,
)

__all__ = [
    "PUBLISHED_MAMBA2_SIZES",
    "PUBLISHED_SIZES",
    "TORCH_DTYPES",
    "LayerState",
    "Mamba",
    "Mamba2",
    "Mamba2Config",
    "MambaBackbone",
    "MambaConfig",
    "MambaLM",
    "RMSNorm",
    "State",
    "cast",
]
