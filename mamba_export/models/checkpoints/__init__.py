"""Checkpoints: Hugging Face and state-spaces folders -> ``mamba_export.models``, and back.

``load`` reads safetensors, or pickles through ``weights_only``: no code in a checkpoint ever runs.
"""

from mamba_export.models.checkpoints.generation_config import FILE as GENERATION_CONFIG
from mamba_export.models.checkpoints.in_memory import is_transformers, load_module
from mamba_export.models.checkpoints.loading import Checkpoint, load
from mamba_export.models.checkpoints.missing_tokenizer import missing_tokenizer
from mamba_export.models.checkpoints.saving import save
from mamba_export.models.checkpoints.source import check_links, locate_tokenizer, name_in_output

__all__ = [
    "GENERATION_CONFIG",
    "Checkpoint",
    "check_links",
    "is_transformers",
    "load",
    "load_module",
    "locate_tokenizer",
    "missing_tokenizer",
    "name_in_output",
    "save",
]
