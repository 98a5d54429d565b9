"""``genai_config.json``: lets ONNX Runtime GenAI's generator drive the graph of a language model."""

from __future__ import annotations

from typing import Any

from mamba_export import contract
from mamba_export.contract.program import Tokens


def genai_config(tokens: Tokens, *, d_model: int, n_layer: int) -> dict[str, Any]:
    """Content of the file.

    The generator finds the states by name (it derives ``conv_state`` and ``recurrent_state`` from the
    key template), so the key and value names given here name nothing in the graph. Head counts are
    asked for by its parser and unused without attention.

    Args:
        tokens: of the program.
        d_model: width of the residual stream.
        n_layer: number of layers.
    """
    eos = 0 if tokens.eos_token_id is None else tokens.eos_token_id
    return {
        "model": {
            "type": "decoder",
            "vocab_size": tokens.vocab_size,
            # There is no limit: this bounds the generator's token buffer, not the model.
            "context_length": 1 << 20,
            "bos_token_id": eos,
            "eos_token_id": eos,
            "pad_token_id": eos,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": contract.MODEL_FILE,
                "hidden_size": d_model,
                "num_hidden_layers": n_layer,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "head_size": d_model,
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
