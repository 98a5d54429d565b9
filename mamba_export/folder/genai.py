"""``genai_config.json``: lets ONNX Runtime GenAI's generator drive the graph of a language model."""

from __future__ import annotations

from typing import Any

from mamba_export import contract
from mamba_export.contract.program import Tokens

_CONTEXT = 1 << 20  # tokens: bounds the generator's buffer, not the model, which has no limit


def genai_config(
    tokens: Tokens,
    *,
    d_model: int,
    n_layer: int,
    key_heads: int = 1,
    head_dim: int | None = None,
    bos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """Content of the file.

    The generator finds the states by name: it derives ``conv_state`` and ``recurrent_state`` from the key
    template, and leaves out what a layer has not. Sizes of heads are asked for by its parser and unused without
    attention.

    Args:
        tokens: of the program.
        d_model: width of the residual stream.
        n_layer: number of layers.
        key_heads: number of heads of an attention layer's keys, which are (batch, key_heads, steps, head_dim).
        head_dim: their width; None without attention.
        bos_token_id, pad_token_id: of the checkpoint. Without a token that pads, the first that ends a text
            does, as in transformers' generate.
    """
    last = tokens.vocab_size - 1
    # The generator cannot go without a token that ends a text: it takes the padding's where none is named,
    # and refuses ids outside the vocabulary. The last id is the least likely to be text (padding of the
    # vocabulary, a byte that UTF-8 has not, the rarest merge), and min_length keeps it from being chosen.
    has_end = bool(tokens.end_tokens)
    end_tokens = tokens.end_tokens or (last,)
    if not has_end or pad_token_id is None or not 0 <= pad_token_id <= last:
        pad_token_id = end_tokens[0]
    bos = {} if bos_token_id is None else {"bos_token_id": bos_token_id}
    return {
        "model": {
            "type": "decoder",
            "vocab_size": tokens.vocab_size,
            "context_length": _CONTEXT,
            **bos,
            "eos_token_id": end_tokens[0] if len(end_tokens) == 1 else list(end_tokens),
            "pad_token_id": pad_token_id,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": contract.MODEL_FILE,
                "hidden_size": d_model,
                "num_hidden_layers": n_layer,
                "num_attention_heads": key_heads,
                "num_key_value_heads": key_heads,
                "head_size": head_dim or d_model,
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
            "min_length": 0 if has_end else _CONTEXT,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": False,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
