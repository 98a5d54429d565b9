"""The byte tokenizer's files: a token's id is the byte's value, in every library that reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mamba_export.folder.bytes_tokenizer import byte_characters, write_byte_tokenizer

TEXTS = [
    "Ge1:1 In the beginning God created the heaven and the earth.\n",
    "  two  spaces\tand a tab \r\n\n trailing ",
    "don't  we'll , a . b ! it ' s",
    "áßç — “quotes” 漢字 🙂",
    "Ā is U+0100, GPT-2's letter for the byte 0; Ġ is its space",
    "<|endoftext|> </s> [UNK]",
    "\x00 between \x00 zeros \x00",
    "\x7f\x80\xad\uffff\U0010ffff",
    "a" * 1000,
    "",
]


def random_texts(count: int) -> list[str]:
    """Strings of characters whose UTF-8 is 1 to 4 bytes long."""
    choose = random.Random(0)

    def character() -> str:
        code = choose.randrange(choose.choice((0x80, 0x800, 0x10000, 0x110000)))
        return "\n" if 0xD800 <= code < 0xE000 else chr(code)  # surrogates have no UTF-8

    return ["".join(character() for _ in range(choose.randrange(60))) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(path)
    return path


def with_tokenizers(folder: Path) -> tuple[Callable, Callable]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text).ids, tokenizer.decode


def with_transformers(folder: Path) -> tuple[Callable, Callable]:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text)["input_ids"], tokenizer.decode


@pytest.mark.parametrize("library", [with_tokenizers, with_transformers])
def test_ids_are_the_bytes_and_decoding_returns_the_text(folder: Path, library: Callable) -> None:
    encode, decode = library(folder)
    for text in TEXTS + random_texts(300):
        ids = list(text.encode())
        assert encode(text) == ids
        assert decode(ids) == text


@pytest.mark.parametrize("library", [with_tokenizers, with_transformers])
def test_bytes_that_are_no_utf8_decode_to_replacement_characters(
    folder: Path, library: Callable
) -> None:
    _, decode = library(folder)
    assert decode([0x61, 0xFF, 0x62]) == "a\N{REPLACEMENT CHARACTER}b"


def test_vocabulary_is_256_tokens_without_special_ones(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 256
    assert [tokenizer.token_to_id(character) for character in byte_characters()] == list(range(256))
    assert tokenizer.get_added_tokens_decoder() == {}


def test_alphabet_is_gpt2s() -> None:
    characters = byte_characters()
    assert len(set(characters)) == 256
    assert "".join(characters[ord("!") : ord("~") + 1]) == "".join(map(chr, range(0x21, 0x7F)))
    assert (characters[0], characters[ord("\n")], characters[ord(" ")]) == ("Ā", "Ċ", "Ġ")


def test_config_says_what_onnxruntime_genai_reads(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["add_bos_token"] is False  # absent means true to onnxruntime-extensions
    assert config["add_eos_token"] is False
    assert config["eos_token_id"] == 0
