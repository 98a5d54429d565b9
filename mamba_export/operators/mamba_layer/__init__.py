"""A whole layer of a language model as one operator; its function calls the others."""

from mamba_export.contract.operators import MAMBA_LAYER
from mamba_export.operators.definition import OperatorDefinition
from mamba_export.operators.mamba_layer.onnx_body import BODY
from mamba_export.operators.mamba_layer.reference import mamba_layer_reference

DEFINITION = OperatorDefinition(
    spec=MAMBA_LAYER,
    reference=mamba_layer_reference,
    body={"MambaLayer": BODY},
    forward={"cpu": "mamba_export.operators.mamba_layer.torch_op:mamba_layer_forward"},
)
