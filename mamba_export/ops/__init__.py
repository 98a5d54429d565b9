"""The operators: ``selective_scan`` and ``causal_conv1d``, as torch custom ops."""

from mamba_export.ops.causal_conv1d import causal_conv1d
from mamba_export.ops.reference import causal_conv1d_reference, selective_scan_reference
from mamba_export.ops.selective_scan import selective_scan

__all__ = [
    "causal_conv1d",
    "causal_conv1d_reference",
    "selective_scan",
    "selective_scan_reference",
]
