"""The operators, a folder each, as torch custom ops: ``torch.ops.mamba_export.<name>``."""

from mamba_export.operators.causal_conv1d import DEFINITION as _CAUSAL_CONV1D
from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.causal_conv1d.torch_op import causal_conv1d
from mamba_export.operators.define import define, withdraw
from mamba_export.operators.definition import OperatorDefinition, definitions, find
from mamba_export.operators.gated_rms_norm import DEFINITION as _GATED_RMS_NORM
from mamba_export.operators.gated_rms_norm.reference import gated_rms_norm_reference
from mamba_export.operators.gated_rms_norm.torch_op import gated_rms_norm
from mamba_export.operators.linear import DEFINITION as _LINEAR
from mamba_export.operators.mamba2_layer import DEFINITION as _MAMBA2_LAYER
from mamba_export.operators.mamba_layer import DEFINITION as _MAMBA_LAYER
from mamba_export.operators.selective_scan import DEFINITION as _SELECTIVE_SCAN
from mamba_export.operators.selective_scan.reference import selective_scan_reference
from mamba_export.operators.selective_scan.torch_op import selective_scan
from mamba_export.operators.state_space_dual import DEFINITION as _STATE_SPACE_DUAL
from mamba_export.operators.state_space_dual.reference import state_space_dual_reference
from mamba_export.operators.state_space_dual.torch_op import state_space_dual

for _definition in (
    _SELECTIVE_SCAN,
    _CAUSAL_CONV1D,
    _STATE_SPACE_DUAL,
    _GATED_RMS_NORM,
    _MAMBA_LAYER,
    _MAMBA2_LAYER,
    _LINEAR,
):
    define(_definition)

__all__ = [
    "OperatorDefinition",
    "causal_conv1d",
    "causal_conv1d_reference",
    "define",
    "definitions",
    "find",
    "gated_rms_norm",
    "gated_rms_norm_reference",
    "selective_scan",
    "selective_scan_reference",
    "state_space_dual",
    "state_space_dual_reference",
    "withdraw",
]
