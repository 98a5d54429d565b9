"""The operators, a folder each, as torch custom ops: ``torch.ops.mamba_export.<name>``."""

from mamba_export.operators.causal_conv1d import DEFINITION as _CAUSAL_CONV1D
from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.causal_conv1d.torch_op import causal_conv1d
from mamba_export.operators.define import define, withdraw
from mamba_export.operators.definition import OperatorDefinition, definitions, find
from mamba_export.operators.mamba_layer import DEFINITION as _MAMBA_LAYER
from mamba_export.operators.selective_scan import DEFINITION as _SELECTIVE_SCAN
from mamba_export.operators.selective_scan.reference import selective_scan_reference
from mamba_export.operators.selective_scan.torch_op import selective_scan

for _definition in (_SELECTIVE_SCAN, _CAUSAL_CONV1D, _MAMBA_LAYER):
    define(_definition)

__all__ = [
    "OperatorDefinition",
    "causal_conv1d",
    "causal_conv1d_reference",
    "define",
    "definitions",
    "find",
    "selective_scan",
    "selective_scan_reference",
    "withdraw",
]
