"""Translation of our torch operators into nodes of our ONNX domain, from the contract's rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript import values

from mamba_export import contract
from mamba_export.contract import layout
from mamba_export.contract.spec import FP32, Form, Operator
from mamba_export.contract.spec import Tensor as Row
from mamba_export.errors import ExportError
from mamba_export.export import standard_operators
from mamba_export.operators import definitions

_ELEMENTS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_KINDS = {
    "flag": OpSchema.AttrType.INT,
    "float": OpSchema.AttrType.FLOAT,
    "ints": OpSchema.AttrType.INTS,
}
_TYPES = {"flag": bool, "float": float}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """``torch.onnx.export``'s ``custom_translation_table``: our operators to our nodes, and what it lacks."""
    ours = getattr(torch.ops, contract.DOMAIN)
    return standard_operators.translations() | {
        getattr(ours, definition.spec.torch_name).default: _translation(definition.spec)
        for definition in definitions()
    }


def _node(spec: Operator, form: Form) -> values.Op:
    """An operator of our domain."""

    def parameter(tensor: Row) -> OpSchema.FormalParameter:
        kind = "tensor(float)" if tensor.dtype == FP32 else tensor.dtype
        return OpSchema.FormalParameter(tensor.name, kind)

    classes = sorted({tensor.dtype for tensor in (*form.inputs, *spec.outputs)} - {FP32})
    schema = OpSchema(
        form.name,
        contract.DOMAIN,
        contract.CONTRACT_VERSION,
        inputs=[parameter(tensor) for tensor in form.inputs],
        outputs=[parameter(tensor) for tensor in spec.outputs],
        type_constraints=[(name, _ELEMENTS, "") for name in classes],
        attributes=[
            *(OpSchema.Attribute(one.name, _KINDS[one.kind], "") for one in spec.node_attributes),
            *(
                OpSchema.Attribute(name, OpSchema.AttrType.STRING, "")
                for name in contract.PLUGIN_ATTRIBUTES
            ),
        ],
    )
    domain = values.Opset(contract.DOMAIN, contract.CONTRACT_VERSION)
    return values.Op(domain, form.name, schema)


def _translation(spec: Operator) -> Callable[..., Any]:
    """A function with the torch operator's signature that writes the node: PyTorch reads the signature."""
    forms = {
        (tuple(tensor.name for tensor in form.inputs), tuple(form.flags.values())): _node(
            spec, form
        )
        for form in spec.forms()
    }
    signature = _signature(spec)

    def translate(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        for row in spec.inputs:
            if row.null_is_zeros and given[row.name] is None:
                raise ExportError(
                    f"{spec.torch_name}: {row.name} is None: give zeros, which a file has to hold"
                )
        present = tuple(row.name for row in spec.inputs if given[row.name] is not None)
        tensors = [given[row.name] for row in spec.inputs]
        attributes: dict[str, Any] = {}
        for one in spec.node_attributes:
            if one.derived:
                # What is derived are sizes of weights: numbers, unlike batch and length.
                sizes = layout.sizes_of(spec, tensors)
                attributes[one.name] = [int(axis.resolve(sizes)) for axis in one.derived]
            else:
                value = given[one.name]
                attributes[one.name] = int(value) if one.kind == "flag" else value
        inputs = [given[name] for name in present]
        flags = tuple(bool(given[one.name]) for one in spec.name_flags)
        return forms[present, flags](*inputs, **attributes, **contract.PLUGIN_ATTRIBUTES)

    translate.__name__ = spec.torch_name
    translate.__signature__ = signature  # type: ignore[attr-defined]
    translate.__annotations__ = {
        parameter.name: parameter.annotation for parameter in signature.parameters.values()
    }
    return translate


def _signature(spec: Operator) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [
            *(inspect.Parameter(tensor.name, kind, annotation=Any) for tensor in spec.inputs),
            *(
                inspect.Parameter(one.name, kind, default=one.default, annotation=_TYPES[one.kind])
                for one in spec.attributes
                if not one.derived
            ),
        ]
    )
