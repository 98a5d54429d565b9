"""Text in pieces against the text of all tokens, by transformers, over tokenizers of every kind."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import BYTES, CORPUS, KINDS

from mamba_export.folder.tokenizer import Tokenizer, load_tokenizer

KIND = pytest.mark.parametrize("kind", KINDS)
OF_BYTE_TOKENS = [kind for kind in KINDS if "byte fallback" in kind]
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True, database=None)
PARTS = [
    *CORPUS,
    " ",
    "  ",
    "the",
    " the",
    "there",
    "日本",
    "👩\u200d👩\u200d👧",
    "é",
    "▁",
    "\ufffd",
    "\n",
]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=8)), max_size=8).map("".join)


@functools.cache
def made(kind: str) -> tuple[Tokenizer, Any]:
    """Our tokenizer and transformers' of one file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        KINDS[kind](folder)
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        return load_tokenizer(folder), theirs


def whole(theirs: Any, tokens: list[int]) -> str:
    """transformers' text, special tokens left out."""
    known = (
        theirs.backend_tokenizer.get_vocab_size()
    )  # it raises on others, a model may choose them
    return str(
        theirs.decode(
            [token for token in tokens if token < known],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
    )


def in_pieces(tokenizer: Tokenizer, tokens: list[int], after: list[int]) -> str:
    detokenizer = tokenizer.detokenizer(after)
    return "".join([*map(detokenizer.push, tokens), detokenizer.finish()])


@KIND
@EXAMPLES
@given(text=TEXTS, cut=st.integers(0, 40))
def test_a_text_in_pieces_is_the_text(kind: str, text: str, cut: int) -> None:
    ours, theirs = made(kind)
    tokens = ours.encode(text)
    assert tokens == theirs(text)["input_ids"]
    assert in_pieces(ours, tokens, []) == ours.decode(tokens) == whole(theirs, tokens)

    prompt, rest = tokens[:cut], tokens[cut:]
    continued = in_pieces(ours, rest, prompt)
    assert continued == ours.decode(rest, after=prompt)
    before = whole(theirs, prompt)
    if not before.endswith("\ufffd"):  # the prompt ends in a character
        assert before + continued == whole(theirs, tokens)


@KIND
@EXAMPLES
@given(data=st.data())
def test_any_tokens_in_pieces_are_their_text(kind: str, data: st.DataObject) -> None:
    """Mostly what no text is encoded as: half characters, special tokens, ids that the tokenizer has not."""
    ours, theirs = made(kind)
    ids = st.integers(0, theirs.backend_tokenizer.get_vocab_size() + 5)
    tokens = data.draw(st.lists(ids, max_size=40))
    cut = data.draw(st.integers(0, 40))
    expected = whole(theirs, tokens)
    found = in_pieces(ours, tokens, [])
    assert found == ours.decode(tokens)
    assert in_pieces(ours, tokens[cut:], tokens[:cut]) == ours.decode(
        tokens[cut:], after=tokens[:cut]
    )
    if kind in OF_BYTE_TOKENS and "\ufffd" in expected:
        assert "\ufffd" in found  # which ones: the next test
    else:
        assert found == expected


@pytest.mark.parametrize("kind", OF_BYTE_TOKENS)
@EXAMPLES
@given(content=st.binary(max_size=12))
def test_bytes_that_are_not_utf8_spoil_no_character(kind: str, content: bytes) -> None:
    """The decoder makes every byte of the run a replacement character, those of whole characters too."""
    ours, theirs = made(kind)
    first = theirs.convert_tokens_to_ids(BYTES)
    word = theirs.convert_tokens_to_ids("t")
    tokens = [word, *[first[byte] for byte in content], word]
    expected = ""
    rest = content
    while rest:
        for count in range(1, 5):
            try:
                expected += rest[:count].decode()
            except UnicodeDecodeError:
                continue
            rest = rest[count:]
            break
        else:
            expected += "\ufffd"
            rest = rest[1:]
    if "Metaspace" in kind:
        expected = expected.replace("▁", " ")
    assert in_pieces(ours, tokens, []) == f"t{expected}t" == ours.decode(tokens)


@KIND
def test_pieces_are_not_held_back(kind: str) -> None:
    ours, _ = made(kind)
    tokens = ours.encode(CORPUS[0] * 20)
    detokenizer = ours.detokenizer()
    silent = 0
    for token in tokens:
        silent = 0 if detokenizer.push(token) else silent + 1
        assert silent < 5
