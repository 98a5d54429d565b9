"""tokenizer.json of others: what transformers ignores, what makes the library panic or grow, one line each."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizer_kinds import KINDS

from mamba_export.errors import SessionError
from mamba_export.folder.tokenizer import Tokenizer, load_tokenizer
from mamba_export.folder.tokenizer_calls import reporting

PADDING = {
    "strategy": {"Fixed": 16},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 1,
    "pad_type_id": 0,
    "pad_token": "</s>",
}
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TEMPLATE: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}  # fmt: skip


def precompiled(text: bytes) -> dict[str, Any]:
    """SentencePiece's table, whose one text stands for what an empty trie never finds."""
    trie = bytes(4)
    table = len(trie).to_bytes(4, "little") + trie + text + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder whose tokenizer.json is Metaspace Unigram's with changed entries."""

    def write(**changed: Any) -> Path:
        KINDS["Metaspace Unigram"](tmp_path)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
        return tmp_path

    return write


@pytest.mark.parametrize(
    "changed",
    [
        {"padding": PADDING},
        {"padding": {**PADDING, "pad_to_multiple_of": 8, "strategy": "BatchLongest"}},
        {"padding": {**PADDING, "strategy": {"Fixed": 1 << 62}}},
        {"padding": {**PADDING, "pad_to_multiple_of": (1 << 64) - 1}},
        {"truncation": TRUNCATION},
        {"truncation": {**TRUNCATION, "max_length": 0}},
        {"truncation": {**TRUNCATION, "stride": 5}},
        {"padding": PADDING, "truncation": TRUNCATION},
    ],
)
def test_padding_and_truncation_of_the_file_are_ignored(
    written: Callable[..., Path], changed: dict[str, Any]
) -> None:
    folder = written(**changed)
    text = "the theatre then there, be there, be there, be there"
    found = load_tokenizer(folder).encode(text)
    if "truncation" in changed and changed["truncation"]["stride"]:
        folder = written()  # transformers refuses this one, and reads the others
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    expected = theirs(text)["input_ids"]
    assert len(expected) > 16
    assert found == expected


HOSTILE = {
    "a special token is missing": ({"post_processor": TEMPLATE}, "encode the prompt"),
    "a regex that backtracks": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                           "invert": False}},
        "encode the prompt",
    ),
    "pieces of no length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "encode the prompt"),
    "a damaged table": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "damaged"),
    "a prefix that no merge has": ({"model": {**BPE, "continuing_subword_prefix": "####"}}, "damaged"),
    "no unknown token": (
        {"model": {"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "#",
                   "max_input_chars_per_word": 9, "vocab": {"q": 0}}},
        "encode the prompt",
    ),
    "a text that doubles and doubles": (
        {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 40}}, "lengthen",
    ),
    "sequences of sequences": (
        {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Sequence", "normalizers": [REPLACE] * 6},
            {"type": "Sequence", "normalizers": [REPLACE] * 6},
        ]}}, "lengthen",
    ),
    "a page between all characters": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 5000}}, "lengthen",
    ),
    "a page for a character": ({"normalizer": {**REPLACE, "content": "a" * 5000}}, "lengthen"),
    "a page before": ({"normalizer": {"type": "Prepend", "prepend": "a" * 5000}}, "lengthen"),
    "a template of many texts": (
        {"post_processor": {**TEMPLATE, "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 5000}},
        "lengthen",
    ),
    "bytes of bytes of bytes": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ] * 20}}, "lengthen",
    ),
    "a table of pages": ({"normalizer": precompiled(b"a" * 5000)}, "lengthen"),
    "a table that is run again and again": (
        {"normalizer": {"type": "Sequence", "normalizers": [precompiled(b"aa")] * 12}}, "lengthen",
    ),
    "a decoder that doubles": ({"decoder": {"type": "Sequence", "decoders": [REPLACE] * 40}}, "lengthen"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_line(
    case: str, written: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    changed, message = HOSTILE[case]
    folder = written(**changed)
    start = time.monotonic()
    with pytest.raises(SessionError) as error:
        load_tokenizer(folder).encode("a" * 40 + "!")
    assert time.monotonic() - start < 20
    assert message in str(error.value)
    assert ("damaged" in str(error.value)) == (message == "damaged")
    assert "tokenizer.json" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""  # Rust prints its panics to the descriptor itself


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
        {"type": "Strip", "content": "!", "start": 0, "stop": 1000},
    ],
)
def test_a_decoder_that_panics(
    decoder: dict[str, Any], written: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    decoders = {"type": "Sequence", "decoders": [{"type": "Fuse"}, decoder]}
    tokenizer = load_tokenizer(written(decoder=decoders))
    _, letter, mark, _ = tokenizer.encode("aa!")
    tokens = [mark] if decoder["type"] == "Strip" else [letter] * 40 + [mark]
    with pytest.raises(SessionError, match=r"tokenizer\.json cannot decode the model's tokens"):
        tokenizer.decode(tokens)
    detokenizer = tokenizer.detokenizer()
    with pytest.raises(SessionError, match=r"tokenizer\.json cannot decode the model's tokens"):
        [detokenizer.push(token) for token in tokens]
    assert capfd.readouterr().err == ""


def test_growth_that_is_small_is_refused_for_long_texts_alone(written: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(
        written(normalizer={"type": "Sequence", "normalizers": [REPLACE] * 9})
    )
    assert tokenizer.encode("a")
    with pytest.raises(SessionError, match="may lengthen a text 512 times, and this one has 32769"):
        tokenizer.encode("b" * ((1 << 15) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_in_use_take_long_texts(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path)
    text = "the end of the tale " * 20_000
    assert len(load_tokenizer(tmp_path).encode(text)) >= 100_000


def test_what_others_write_to_standard_error_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(2, b"third\n")
        raise ValueError("no luck")

    with reporting("{reason}"):
        os.write(2, b"first\n")
        with reporting("{reason}"):
            os.write(2, b"second\n")
    with pytest.raises(SessionError, match=r"^bad: no luck$"), reporting("bad: {reason}"):
        fail()
    with pytest.raises(KeyboardInterrupt), reporting("bad: {reason}"):
        raise KeyboardInterrupt
    assert capfd.readouterr().err == "first\nsecond\nthird\n"


def test_a_closed_standard_error_changes_nothing(tmp_path: Path) -> None:
    KINDS["words"](tmp_path)
    code = (
        "import os, sys; os.close(2)\n"
        "from mamba_export.folder.tokenizer import load_tokenizer\n"
        "print(load_tokenizer(sys.argv[1]).encode('the end'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, check=True, timeout=60
    )
    assert len(json.loads(found.stdout)) == 2


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"\xef\xbb\xbf{", b"[" * 100_000, b"null", b'{"version": 3}']
)
def test_content_that_is_no_tokenizer(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(SessionError, match=r"tokenizer\.json is (damaged|not UTF-8)") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_damage(written: Callable[..., Path]) -> None:
    path = written() / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert isinstance(load_tokenizer(path.parent), Tokenizer)


def test_threads_share_one_standard_error(
    written: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = written(pre_tokenizer={"type": "FixedLength", "length": 0})
    tokenizer = load_tokenizer(folder)

    def fail(_: int) -> str:
        with pytest.raises(SessionError) as error:
            tokenizer.encode("the end")
        return str(error.value)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        said = set(pool.map(fail, range(200)))
    os.write(2, b"still there\n")
    assert len(said) == 1
    assert capfd.readouterr().err == "still there\n"


def test_a_special_token_that_a_normalizer_changes(tmp_path: Path) -> None:
    """The library decodes it to its changed text; pieces and the whole agree."""
    KINDS["WordPiece"](tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][0]["normalized"] = True
    path.write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    tokens = tokenizer.encode("the end")
    detokenizer = tokenizer.detokenizer()
    pieces = "".join([*map(detokenizer.push, tokens), detokenizer.finish()])
    assert pieces == tokenizer.decode(tokens) == "[cls] the end"
