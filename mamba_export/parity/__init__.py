"""Parity between backends: the tolerance table, and ``verify``."""

from mamba_export.parity.bounds import Check, Report
from mamba_export.parity.verification import verify

__all__ = ["Check", "Report", "verify"]
