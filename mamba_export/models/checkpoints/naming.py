"""Names of tensors that the Mamba-1 families share: MambaLM's own, but for the embedding's."""

from __future__ import annotations

EMBEDDING, HEAD = "embeddings.weight", "lm_head.weight"
"""MambaLM's names of the embedding and of an untied output projection."""


def our_name(name: str) -> str:
    """A file's tensor name -> MambaLM's parameter name.

    state-spaces writes "embedding", as transformers' first versions did; a backbone that was saved
    without its head has no "backbone." prefix.
    """
    name = name.removeprefix("backbone.")
    if name in ("embedding.weight", EMBEDDING):
        return EMBEDDING
    return name if name == HEAD else f"backbone.{name}"
