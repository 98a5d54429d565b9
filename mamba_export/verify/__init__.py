"""Parity between backends: the tolerance table, and ``verify``."""

from mamba_export.callable_module import make_callable
from mamba_export.verify.bounds import Check, Report
from mamba_export.verify.verification import verify

__all__ = ["Check", "Report", "verify"]

make_callable(__name__, verify)
