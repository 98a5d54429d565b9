"""The selective scan of Mamba-1 (S6)."""

from mamba_export.contract.operators import SELECTIVE_SCAN
from mamba_export.operators.definition import OperatorDefinition
from mamba_export.operators.native import compiled
from mamba_export.operators.selective_scan import onnx_body
from mamba_export.operators.selective_scan.reference import selective_scan_reference

DEFINITION = OperatorDefinition(
    spec=SELECTIVE_SCAN,
    reference=selective_scan_reference,
    body=onnx_body.BODIES,
    forward={
        "cpu": "mamba_export.operators.selective_scan.cpu:selective_scan_forward",
        "triton": "mamba_export.operators.selective_scan.triton_kernels:selective_scan_forward",
        "native": compiled(SELECTIVE_SCAN),
    },
    backward={
        "cpu": "mamba_export.operators.selective_scan.cpu:selective_scan_backward",
        "triton": "mamba_export.operators.selective_scan.triton_kernels:selective_scan_backward",
    },
)
