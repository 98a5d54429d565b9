"""Checkpoints: Hugging Face and state-spaces folders -> ``mamba_export.models``, and back.

``load`` reads safetensors, or pickles through ``weights_only``: no code in a checkpoint ever runs.
"""

from mamba_export.models.checkpoints.in_memory import is_transformers, load_module
from mamba_export.models.checkpoints.loading import Checkpoint, load
from mamba_export.models.checkpoints.saving import save
from mamba_export.models.checkpoints.source import check_links, locate_tokenizer

__all__ = [
    "Checkpoint",
    "check_links",
    "is_transformers",
    "load",
    "load_module",
    "locate_tokenizer",
    "save",
]
