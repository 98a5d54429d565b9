"""Metadata files of older layouts, converted to today's, so that folders of before still run."""

from __future__ import annotations

from typing import Any

from mamba_export import contract


def from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a file of format 1, in today's layout.

    Format 1 knew one input, one output and zero-filled states of fixed size: ``inputs`` and ``outputs`` held
    the states' tensors too, and what makes a language model stood at the top level.

    Raises:
        KeyError, TypeError, ValueError, IndexError: it is damaged.
    """
    tensors = {tensor["name"]: tensor for key in ("inputs", "outputs") for tensor in content[key]}
    pairs = [(tensors[state["past"]], tensors[state["present"]]) for state in content["states"]]
    if not len(content["inputs"]) == len(content["outputs"]) == len(pairs) + 1:
        raise ValueError("inputs, outputs and states do not match")
    first = content["inputs"][0]
    tokens = {key: content[key] for key in ("vocab_size", "eos_token_id", "last_logits_only")}
    tokens["vocab_size"] = int(tokens["vocab_size"])
    return {
        **{key: content[key] for key in ("dtype", "opset", "model", "source", "versions")},
        "inputs": [first],
        "outputs": content["outputs"][:1],
        "states": [
            {
                "name": past["name"],
                "past": past["name"],
                "present": present["name"],
                "dtype": past["dtype"],
                "shape": past["shape"],
                "start": 0.0,
                "grows": None,
            }
            for past, present in pairs
        ],
        "tokens": tokens if first["name"] == contract.INPUT_IDS else None,
    }
