"""The gated RMSNorm of Mamba-2's block."""

from mamba_export.contract.operators import GATED_RMS_NORM
from mamba_export.operators.definition import OperatorDefinition
from mamba_export.operators.gated_rms_norm import onnx_body
from mamba_export.operators.gated_rms_norm.reference import gated_rms_norm_reference
from mamba_export.operators.native import compiled

DEFINITION = OperatorDefinition(
    spec=GATED_RMS_NORM,
    reference=gated_rms_norm_reference,
    body={"GatedRmsNorm": onnx_body.BODY},
    forward={
        "triton": "mamba_export.operators.gated_rms_norm.triton_kernels:gated_rms_norm_forward",
        "native": compiled(GATED_RMS_NORM),
    },
    backward={
        "cpu": "mamba_export.operators.gated_rms_norm.gradients:gated_rms_norm_backward",
        "triton": "mamba_export.operators.gated_rms_norm.triton_kernels:gated_rms_norm_backward",
    },
)
