"""Matrices as codes of few bits in blocks: how codes are chosen, and what they stand for."""

from mamba_export.packing.rounding import Packed, pack, unpack

__all__ = ["Packed", "pack", "unpack"]
