"""Translation of the torch custom ops into nodes of our ONNX domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript import values

import mamba_export.operators  # noqa: F401  (registers the torch operators)
from mamba_export import contract

# Inputs and outputs whose dtype is T; the others are fp32.
_SCAN_T = {"u", "delta", "B", "C", "z"}
_CONV_T = {"x", "initial_state"}

_PLUGIN_ATTRIBUTES = {
    contract.ATTR_PLUGIN_VERSION: contract.PLUGIN_VERSION,
    contract.ATTR_PLUGIN_NAMESPACE: contract.PLUGIN_NAMESPACE,
}


def _op(
    name: str,
    inputs: tuple[str, ...],
    outputs: dict[str, bool],
    low: set[str],
    flags: tuple[str, ...],
) -> values.Op:
    """An operator of our domain; ``outputs`` says for each whether its dtype is T."""
    parameter = OpSchema.FormalParameter
    schema = OpSchema(
        name,
        contract.DOMAIN,
        contract.CONTRACT_VERSION,
        inputs=[parameter(n, "T" if n in low else "tensor(float)") for n in inputs],
        outputs=[parameter(n, "T" if is_low else "tensor(float)") for n, is_low in outputs.items()],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[
            *(OpSchema.Attribute(flag, OpSchema.AttrType.INT, "") for flag in flags),
            *(OpSchema.Attribute(a, OpSchema.AttrType.STRING, "") for a in _PLUGIN_ATTRIBUTES),
        ],
    )
    domain = values.Opset(contract.DOMAIN, contract.CONTRACT_VERSION)
    return values.Op(domain, name, schema)


_SCAN_FLAGS = (contract.ATTR_DELTA_SOFTPLUS, contract.ATTR_REVERSE)
_CONV_FLAGS = (contract.ATTR_SILU, contract.ATTR_REVERSE)
_SCAN_OUTPUTS = {"y": True, "last_state": False}

_SCAN = _op(
    contract.SELECTIVE_SCAN, contract.SELECTIVE_SCAN_INPUTS, _SCAN_OUTPUTS, _SCAN_T, _SCAN_FLAGS
)
_SCAN_UNGATED = _op(
    contract.SELECTIVE_SCAN_UNGATED,
    contract.SELECTIVE_SCAN_UNGATED_INPUTS,
    _SCAN_OUTPUTS,
    _SCAN_T,
    _SCAN_FLAGS,
)
_CONV = _op(
    contract.CAUSAL_CONV1D,
    contract.CAUSAL_CONV1D_INPUTS,
    {"y": True, "last_state": True},
    _CONV_T,
    _CONV_FLAGS,
)


def _translate_scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    z: Any,
    delta_bias: Any,
    initial_state: Any,
    delta_softplus: bool = True,
    reverse: bool = False,
) -> Any:
    attributes = {
        contract.ATTR_DELTA_SOFTPLUS: int(delta_softplus),
        contract.ATTR_REVERSE: int(reverse),
        **_PLUGIN_ATTRIBUTES,
    }
    if z is None:
        return _SCAN_UNGATED(u, delta, A, B, C, D, delta_bias, initial_state, **attributes)
    return _SCAN(u, delta, A, B, C, D, z, delta_bias, initial_state, **attributes)


def _translate_conv(
    x: Any, weight: Any, bias: Any, initial_state: Any, silu: bool = True, reverse: bool = False
) -> Any:
    attributes = {
        contract.ATTR_SILU: int(silu),
        contract.ATTR_REVERSE: int(reverse),
        **_PLUGIN_ATTRIBUTES,
    }
    return _CONV(x, weight, bias, initial_state, **attributes)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export`` takes as ``custom_translation_table``: our ops to our nodes."""
    return {
        torch.ops.mamba_export.selective_scan.default: _translate_scan,
        torch.ops.mamba_export.causal_conv1d.default: _translate_conv,
    }
