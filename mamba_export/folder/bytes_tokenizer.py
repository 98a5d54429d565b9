"""Tokenizer files of a byte-level model: a token's id is the byte's value.

A byte is written as one character of GPT-2's alphabet, which gives every byte a printable character,
so that the usual tokenizer libraries, which work on strings, carry arbitrary bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mamba_export.files import write_text


def byte_characters() -> list[str]:
    """The 256 characters of GPT-2's byte-to-unicode alphabet, by byte value.

    Printable Latin-1 bytes are themselves; the others, in order, are the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def write_byte_tokenizer(folder: Path, eos_token_id: int = 0) -> None:
    """Write tokenizer.json and tokenizer_config.json into ``folder``.

    Encoding is exact, ``list(text.encode())``, for every text, and adds no token of its own. For that no
    special token is declared: tokenizer libraries look for a special token's spelling in the text, and
    that of the byte 0 (U+0100) is a letter that texts contain. The model's own configuration
    names the end-of-text token; here it is recorded as ``eos_token_id`` for other programs.

    Args:
        folder: an existing folder.
        eos_token_id: the byte that ends a text.
    """
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(byte_characters())},
            "merges": [],
        },
    }
    # onnxruntime-genai chooses its tokenizer by the class, and takes absent add_bos_token for true.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "eos_token_id": eos_token_id,
        "model_max_length": 1_000_000_000,
    }
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        write_text(folder / name, text + "\n")
