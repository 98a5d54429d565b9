"""The two JSON files beside the graph: our metadata, and ONNX Runtime GenAI's configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from mamba_export import contract
from mamba_export.models import MambaConfig
from mamba_export.versions import installed_versions

_DTYPE_NAMES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT64: "int64",
}


def _describe_value(value: ir.Value) -> dict[str, Any]:
    assert value.dtype is not None
    assert value.shape is not None
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return {"name": value.name, "dtype": _DTYPE_NAMES[value.dtype], "shape": shape}


def describe(
    model: ir.Model,
    config: MambaConfig,
    *,
    dtype: str,
    opset: int,
    last_logits_only: bool,
    source: dict[str, Any],
) -> dict[str, Any]:
    """Content of the metadata file.

    ``inputs`` and ``outputs`` hold name, dtype (fp32, fp16, bf16, int64) and shape, where "batch" and
    "length" stand for what is dynamic; ``states`` pairs each past input with its present output.
    """
    inputs = [_describe_value(value) for value in model.graph.inputs]
    outputs = [_describe_value(value) for value in model.graph.outputs]
    return {
        "format": contract.METADATA_FORMAT,
        "contract_version": contract.CONTRACT_VERSION,
        "dtype": dtype,
        "opset": opset,
        "last_logits_only": last_logits_only,
        "vocab_size": config.vocab_size,
        "eos_token_id": config.eos_token_id,
        "inputs": inputs,
        "outputs": outputs,
        "states": [
            {"past": past["name"], "present": present["name"], **_state_type(past)}
            for past, present in zip(inputs[1:], outputs[1:], strict=True)
        ],
        "model": dataclasses.asdict(config),
        "source": source,
        "versions": installed_versions("mamba_export", "torch", "onnx", "onnxscript"),
    }


def _state_type(value: dict[str, Any]) -> dict[str, Any]:
    return {"dtype": value["dtype"], "shape": value["shape"]}


def genai_config(config: MambaConfig) -> dict[str, Any]:
    """``genai_config.json``: lets ONNX Runtime GenAI's generator drive the graph.

    The generator finds the states by name (it derives ``conv_state`` and ``recurrent_state`` from the
    key template), so the key and value names given here name nothing in the graph. Head counts are
    asked for by its parser and unused without attention.
    """
    eos = 0 if config.eos_token_id is None else config.eos_token_id
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.vocab_size,
            # There is no limit: this bounds the generator's token buffer, not the model.
            "context_length": 1 << 20,
            "bos_token_id": eos,
            "eos_token_id": eos,
            "pad_token_id": eos,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": contract.MODEL_FILE,
                "hidden_size": config.d_model,
                "num_hidden_layers": config.n_layer,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "head_size": config.d_model,
                "inputs": {
                    "input_ids": contract.INPUT_IDS,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": contract.LOGITS,
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": 4096,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": False,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
