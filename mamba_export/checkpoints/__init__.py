"""Checkpoints: Hugging Face and state-spaces folders -> ``mamba_export.nn``, and back.

``load`` reads safetensors, or pickles through ``weights_only``: no code in a checkpoint ever runs.
"""

from mamba_export.checkpoints.loading import Checkpoint, load
from mamba_export.checkpoints.saving import save
from mamba_export.checkpoints.source import locate_tokenizer

__all__ = ["Checkpoint", "load", "locate_tokenizer", "save"]
