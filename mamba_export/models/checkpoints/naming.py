"""Names of tensors that the Mamba-1 families share: MambaLM's own, but for the embedding's and wrappers'."""

from __future__ import annotations

EMBEDDING, HEAD = "embeddings.weight", "lm_head.weight"
"""MambaLM's names of the embedding and of an untied output projection."""

# What wrappers put before the names of what they wrap: torch.compile, DataParallel and DistributedDataParallel,
# FullyShardedDataParallel, and activation checkpointing. They wrap whole models, and layers inside them.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# An attribute that holds the model (Lightning's modules, the first ports to transformers), and the backbone.
_HOLDERS = ("model", "backbone")


def our_name(name: str) -> str:
    """A file's tensor name -> MambaLM's parameter name.

    state-spaces writes "embedding", as transformers' first versions did; a backbone that was saved
    without its head has no "backbone." prefix; and a model that was saved through a wrapper has the wrapper's.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts and parts[0] in _HOLDERS:
        del parts[0]
    name = ".".join(parts)
    if name in ("embedding.weight", EMBEDDING):
        return EMBEDDING
    return name if name == HEAD else f"backbone.{name}"
