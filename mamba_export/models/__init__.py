"""Mamba blocks and models: ``forward(x, state) -> y, state`` for prefill and decode alike."""

from mamba_export.models.config import ModelConfig
from mamba_export.models.language_model import MambaBackbone, MambaLM, State, cast
from mamba_export.models.mamba2_block import Mamba2
from mamba_export.models.mamba2_config import PUBLISHED_MAMBA2_SIZES, Mamba2Config
from mamba_export.models.mamba_block import Mamba
from mamba_export.models.mamba_config import PUBLISHED_SIZES, MambaConfig
from mamba_export.models.mixer import LayerState, Mixer
from mamba_export.models.norms import RMSNorm
from mamba_export.operators.dtypes import TORCH_DTYPES

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
    "Mixer",
    "ModelConfig",
    "RMSNorm",
    "State",
    "cast",
]
