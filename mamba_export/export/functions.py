"""Model-local functions: each of our nodes again, in standard ONNX operators.

A runtime that has no kernel for a node inlines its function. Signatures come from the contract's rows, the
mathematics from the operators' definitions.
"""

from __future__ import annotations

import onnx
import onnx.parser

from mamba_export import contract
from mamba_export.contract.spec import Form
from mamba_export.operators import OperatorDefinition, definitions


def function_protos(opset: int) -> list[onnx.FunctionProto]:
    """The functions of all operators that are defined, every form, over standard ONNX of version ``opset``."""
    return [
        function_proto(definition, form, opset)
        for definition in definitions()
        for form in definition.spec.forms()
    ]


def function_proto(definition: OperatorDefinition, form: Form, opset: int) -> onnx.FunctionProto:
    """The function of one form of an operator.

    Raises:
        onnx.parser.ParseError: the definition's body is not ONNX text.
    """
    spec, body = definition.spec, definition.body[form.name]
    imports = [f'"" : {opset}']
    if f"{contract.DOMAIN}." in body:  # it calls others of ours
        imports.append(f'"{contract.DOMAIN}" : {contract.CONTRACT_VERSION}')
    # The plugin attributes are declared, and not used: TensorRT's parser prefers a plugin to a function
    # when the node carries them, and refuses attributes that the function does not declare.
    attributes = [*(one.name for one in spec.node_attributes), *contract.PLUGIN_ATTRIBUTES]
    inputs = [tensor.name for tensor in form.inputs]
    outputs = [tensor.name for tensor in spec.outputs]
    return onnx.parser.parse_function(
        f"<opset_import: [{', '.join(imports)}],"
        f' domain: "{contract.DOMAIN}">'
        f"{form.name} <{', '.join(attributes)}> ({', '.join(inputs)}) => ({', '.join(outputs)})"
        f"{{{body}}}"
    )
