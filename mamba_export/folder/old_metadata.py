"""Metadata files of older layouts, converted to today's, so that folders of before still run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mamba_export import contract
from mamba_export.fields import Choice, Fields, Text


def from_format_1(fields: Fields) -> dict[str, Any]:
    """The content of a file of format 1, in today's layout.

    Format 1 knew one input, one output and zero-filled states of fixed size: ``inputs`` and ``outputs`` held
    the states' tensors too, and what makes a language model stood at the top level.

    Raises:
        MambaExportError: it is damaged, as ``fields`` says it. What is taken over is not checked here.
    """
    inputs, outputs = fields.each("inputs"), fields.each("outputs")
    states = fields.each("states")
    if not len(inputs) == len(outputs) == len(states) + 1:
        raise fields.complain("inputs, outputs and states do not match")
    tensors = {one.take("name", Text()): one.data for one in (*inputs, *outputs)}
    first = inputs[0].data
    kept = ("dtype", "opset", "model", "source", "versions")
    of_tokens = ("vocab_size", "eos_token_id", "last_logits_only")
    for key in (*kept, *of_tokens):
        fields.require(key)
    return {
        **{key: fields.data[key] for key in kept},
        "inputs": [first],
        "outputs": [outputs[0].data],
        "states": [_state(state, tensors) for state in states],
        "tokens": {key: fields.data[key] for key in of_tokens}
        if first["name"] == contract.INPUT_IDS
        else None,
    }


def _state(pair: Fields, tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    past, present = (pair.take(key, Choice(tuple(tensors))) for key in ("past", "present"))
    tensor = Fields(dict(tensors[past]), pair.complain)
    return {
        "name": past,
        "past": past,
        "present": present,
        "dtype": tensor.require("dtype"),
        "shape": tensor.require("shape"),
        "start": 0.0,
        "grows": None,
    }
