"""A whole layer of a Mamba-2 language model as one operator; its function calls the others."""

from mamba_export.contract.operators import MAMBA2_LAYER
from mamba_export.operators.definition import OperatorDefinition
from mamba_export.operators.mamba2_layer.onnx_body import BODY
from mamba_export.operators.mamba2_layer.reference import mamba2_layer_reference

DEFINITION = OperatorDefinition(
    spec=MAMBA2_LAYER,
    reference=mamba2_layer_reference,
    body={"Mamba2Layer": BODY},
    forward={"cpu": "mamba_export.operators.mamba2_layer.torch_op:mamba2_layer_forward"},
)
