"""The operators: ``selective_scan`` and ``causal_conv1d``, as torch custom ops."""

from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.causal_conv1d.torch_op import causal_conv1d
from mamba_export.operators.selective_scan.reference import selective_scan_reference
from mamba_export.operators.selective_scan.torch_op import selective_scan

__all__ = [
    "causal_conv1d",
    "causal_conv1d_reference",
    "selective_scan",
    "selective_scan_reference",
]
