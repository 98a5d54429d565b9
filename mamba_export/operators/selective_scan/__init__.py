"""The selective scan of Mamba-1 (S6)."""
