"""Model-local functions: each of our nodes again, in standard ONNX operators.

A runtime that has no kernel for a node inlines its function. Signatures come from the contract's rows, the
mathematics from the operators' definitions.
"""

from __future__ import annotations

import re

import onnx
import onnx.parser

from mamba_export import contract
from mamba_export.contract.spec import Form, packed_input
from mamba_export.contract.weights import CODES, PACKED_OPSET, SCALES, ZERO_POINTS
from mamba_export.operators import OperatorDefinition, definitions


def function_protos(opset: int) -> list[onnx.FunctionProto]:
    """The functions of all operators that are defined, every form, over standard ONNX of version ``opset``.

    Those with packed weights are there from opset 21 on.
    """
    return [
        function_proto(definition, form, opset)
        for definition in definitions()
        for form in (
            *definition.spec.forms(),
            *(definition.spec.packed_forms() if opset >= PACKED_OPSET else ()),
        )
    ]


def function_proto(definition: OperatorDefinition, form: Form, opset: int) -> onnx.FunctionProto:
    """The function of one form of an operator.

    Raises:
        onnx.parser.ParseError: the definition's body is not ONNX text.
    """
    spec = definition.spec
    body = (
        _packed_body(definition.body[spec.name], form)
        if form.packed
        else definition.body[form.name]
    )
    imports = [f'"" : {opset}']
    if f"{contract.DOMAIN}." in body:  # it calls others of ours
        imports.append(f'"{contract.DOMAIN}" : {contract.CONTRACT_VERSION}')
    # The plugin attributes are declared, and not used: TensorRT's parser prefers a plugin to a function
    # when the node carries them, and refuses attributes that the function does not declare.
    own = [one.name for one in (*spec.node_attributes, *form.attributes)]
    attributes = [*own, *contract.PLUGIN_ATTRIBUTES]
    inputs = [tensor.name for tensor in form.inputs]
    outputs = [tensor.name for tensor in spec.outputs]
    return onnx.parser.parse_function(
        f"<opset_import: [{', '.join(imports)}],"
        f' domain: "{contract.DOMAIN}">'
        f"{form.name} <{', '.join(attributes)}> ({', '.join(inputs)}) => ({', '.join(outputs)})"
        f"{{{body}}}"
    )


def _packed_body(body: str, form: Form) -> str:
    """The body of a form with every weight, after what widens the packed ones.

    A widened matrix has one reader, its product: with a second one, such as a CastLike that takes its dtype
    from there, runtimes would not join the two.
    """
    parts = (CODES, SCALES, *([ZERO_POINTS] if form.has_zero_points else []))
    widened = ""
    for weight in form.packed:
        inputs = ", ".join(packed_input(weight, part) for part in parts)
        widening = f"DequantizeLinear <axis = 0, block_size: int = @block> ({inputs})"
        turned = f"Transpose <perm = [1, 0]> ({weight})"
        if turned in body:  # of a weight with outputs first, whose codes are turned already
            body = body.replace(turned, widening)
        else:
            widened += f"\n    {weight} = {widening}"
        scales = packed_input(weight, SCALES)
        body = re.sub(rf"(CastLike \(\w+, ){weight}\)", rf"\1{scales})", body)
    return widened + body
