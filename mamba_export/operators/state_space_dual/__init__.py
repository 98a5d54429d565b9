"""State space duality (SSD), the sequence operator of Mamba-2."""

from mamba_export.contract.operators import STATE_SPACE_DUAL
from mamba_export.operators.definition import OperatorDefinition
from mamba_export.operators.native import compiled
from mamba_export.operators.state_space_dual import onnx_body
from mamba_export.operators.state_space_dual.reference import state_space_dual_reference

DEFINITION = OperatorDefinition(
    spec=STATE_SPACE_DUAL,
    reference=state_space_dual_reference,
    body=onnx_body.BODIES,
    forward={
        "cpu": "mamba_export.operators.state_space_dual.cpu:state_space_dual_forward",
        "triton": "mamba_export.operators.state_space_dual.triton_kernels:state_space_dual_forward",
        "native": compiled(STATE_SPACE_DUAL),
    },
    backward={
        "cpu": "mamba_export.operators.state_space_dual.cpu:state_space_dual_backward",
        "triton": "mamba_export.operators.state_space_dual.triton_kernels:state_space_dual_backward",
    },
)
