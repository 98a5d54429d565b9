"""The depthwise causal convolution with state."""

from torch import Tensor

from mamba_export.contract.operators import CAUSAL_CONV1D
from mamba_export.operators.causal_conv1d.onnx_body import BODY
from mamba_export.operators.causal_conv1d.reference import causal_conv1d_reference
from mamba_export.operators.definition import OperatorDefinition
from mamba_export.operators.native import compiled

MAX_TAPS = 16
"""Largest d_conv that the compiled kernels take."""


def _native_takes(x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor) -> bool:
    return weight.shape[1] <= MAX_TAPS


DEFINITION = OperatorDefinition(
    spec=CAUSAL_CONV1D,
    reference=causal_conv1d_reference,
    body={"CausalConv1d": BODY},
    forward={
        "cpu": "mamba_export.operators.causal_conv1d.cpu:causal_conv1d_forward",
        "triton": "mamba_export.operators.causal_conv1d.triton_kernels:causal_conv1d_forward",
        "native": compiled(CAUSAL_CONV1D),
    },
    backward={
        "cpu": "mamba_export.operators.causal_conv1d.cpu:causal_conv1d_backward",
        "triton": "mamba_export.operators.causal_conv1d.triton_kernels:causal_conv1d_backward",
    },
    native_takes=_native_takes,
)
