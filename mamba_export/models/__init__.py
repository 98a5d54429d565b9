"""Mamba blocks and models: ``forward(x, state) -> y, state`` for prefill and decode alike."""

from mamba_export.models.block import LayerState, Mamba, RMSNorm
from mamba_export.models.config import PUBLISHED_SIZES, MambaConfig
from mamba_export.models.language_model import MambaBackbone, MambaLM, State, cast
from mamba_export.operators.dtypes import TORCH_DTYPES

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
