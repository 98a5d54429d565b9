"""Tensor names: a file's (transformers, state-spaces) against MambaLM's."""

from __future__ import annotations

EMBEDDING, HEAD = "embeddings.weight", "lm_head.weight"
"""MambaLM's names of the embedding and of an untied output projection."""


def our_name(name: str) -> str:
    """A file's tensor name -> MambaLM's parameter name.

    state-spaces differs from transformers in the embedding alone ("embedding"); a backbone that was
    saved without its head has no "backbone." prefix.
    """
    name = name.removeprefix("backbone.")
    if name in ("embedding.weight", EMBEDDING):
        return EMBEDDING
    return name if name == HEAD else f"backbone.{name}"


def file_name(name: str) -> str:
    """MambaLM's parameter name -> transformers' tensor name."""
    return f"backbone.{name}" if name == EMBEDDING else name
