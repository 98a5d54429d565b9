"""The product with a matrix that has a row an output, as a language model's head and its embedding have."""

from mamba_export.contract.operators import LINEAR
from mamba_export.operators.definition import OperatorDefinition
from mamba_export.operators.linear.onnx_body import BODY
from mamba_export.operators.linear.reference import linear_reference

DEFINITION = OperatorDefinition(spec=LINEAR, reference=linear_reference, body={LINEAR.name: BODY})
"""It stands for a head while a model is exported; training and running take PyTorch's own."""
