"""The families, by what their models are for; importing a module here adds its entries."""

from __future__ import annotations

from model_families.entries import classification, heads, pixels, sequences  # noqa: F401
from model_families.family import FAMILIES

__all__ = ["FAMILIES"]
