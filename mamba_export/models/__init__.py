"""Mamba blocks and models: ``forward(x, state) -> y, state`` for prefill and decode alike."""

from mamba_export.models.block import LayerState, Mamba, RMSNorm
from mamba_export.models.config import PUBLISHED_SIZES, MambaConfig
from mamba_export.models.language_model import TORCH_DTYPES, MambaBackbone, MambaLM, State, cast

__all__ = [
    "PUBLISHED_SIZES",
    "TORCH_DTYPES",
    "LayerState",
    "Mamba",
    "MambaBackbone",
    "MambaConfig",
    "MambaLM",
    "RMSNorm",
    "State",
    "cast",
]
