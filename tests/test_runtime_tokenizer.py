"""Tokens to text as they arrive: never half a character, and the same text in the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mamba_export.errors import SessionError
from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer
from mamba_export.folder.tokenizer import Tokenizer, load_tokenizer

TEXT = "In the beginning, héllo wörld — 日本語 ∑x² 👩‍👩‍👧 end.\n\ttab  two spaces"


def of_bytes(folder: Path) -> Tokenizer:
    write_byte_tokenizer(folder)
    return load_tokenizer(folder)


def of_byte_pairs(folder: Path) -> Tokenizer:
    """As GPT-NeoX's: byte-level BPE whose merges may end inside a character, and special tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["In the beginning was the other wörld, the end. 日日日 本本"], trainer
    )
    tokenizer.add_tokens(["    é"])  # not special: it is text
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def of_pieces(folder: Path) -> Tokenizer:
    """As Llama's: pieces with byte fallback, whose decoder is no map from token to bytes."""
    alphabet = sorted({c for c in TEXT.replace(" ", "▁") if ord(c) < 256 or c == "▁"})
    pieces = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], *alphabet, "▁t", "▁th"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, [("▁", "t"), ("▁t", "h")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


KINDS = pytest.mark.parametrize("kind", [of_bytes, of_byte_pairs, of_pieces])


@KINDS
def test_pieces_are_whole_characters_and_join_to_the_text(kind: object, tmp_path: Path) -> None:
    tokenizer = kind(tmp_path)  # type: ignore[operator]
    tokens = tokenizer.encode(TEXT)
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.push(token) for token in tokens]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + detokenizer.finish() == TEXT == tokenizer.decode(tokens)
    assert "" in pieces  # the text does have characters of several tokens
    longest = max(len(piece) for piece in pieces)
    assert longest < 12  # it is not all held back


@KINDS
def test_an_unfinished_character_comes_as_a_replacement_at_the_end(
    kind: object, tmp_path: Path
) -> None:
    tokenizer = kind(tmp_path)  # type: ignore[operator]
    tokens = tokenizer.encode("a👩")
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.push(token) for token in tokens[:-1]]
    assert "".join(pieces) == "a"
    assert set(detokenizer.finish()) == {"\ufffd"}


@pytest.mark.parametrize("kind", [of_bytes, of_byte_pairs])
def test_any_tokens_give_the_same_text_in_pieces(kind: object, tmp_path: Path) -> None:
    tokenizer = kind(tmp_path)  # type: ignore[operator]
    rng = np.random.default_rng(0)
    for _ in range(200):  # mostly invalid UTF-8
        tokens = rng.integers(0, 256, 40).tolist()
        detokenizer = tokenizer.detokenizer()
        pieces = [detokenizer.push(token) for token in tokens]
        assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(tokens)


def test_invalid_bytes_are_not_held_back_for_ever(tmp_path: Path) -> None:
    detokenizer = of_pieces(tmp_path).detokenizer()
    invalid = 1 + 0xFF
    assert sum(len(detokenizer.push(invalid)) for _ in range(40)) >= 36


def test_random_tokens_never_stop_and_are_never_held_back_for_long(tmp_path: Path) -> None:
    tokenizer = of_pieces(tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(200):
        detokenizer = tokenizer.detokenizer()
        silent = 0
        for token in rng.integers(0, 285, 60).tolist():
            silent = 0 if detokenizer.push(token) else silent + 1
            assert silent < 4
        assert len(detokenizer.finish()) < 4


@KINDS
def test_tokens_without_text_change_nothing(kind: object, tmp_path: Path) -> None:
    """Special tokens, and ids of a padded vocabulary, wherever and however many they are."""
    tokenizer = kind(tmp_path)  # type: ignore[operator]
    tokens = []
    for token in tokenizer.encode("a the 日"):
        tokens += [token, *[5000] * 9]
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.push(token) for token in tokens]
    assert "".join(pieces) + detokenizer.finish() == "a the 日" == tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("kind", "tokens", "text"),
    [
        pytest.param(of_bytes, [0xFF] * 20, "\ufffd" * 20, id="holds back"),
        pytest.param(of_pieces, [1 + 0x7C, 1 + 0xFF, 0], "|\ufffd<unk>", id="raises"),
        pytest.param(of_bytes, [0x61, 0xE6], "a\ufffd", id="has no end"),
    ],
)
@pytest.mark.xfail(reason="why folder/tokenizer.py is more than a DecodeStream", strict=False)
def test_decode_stream_alone_keeps_our_promises(
    kind: object, tokens: list[int], text: str, tmp_path: Path
) -> None:
    tokenizer = kind(tmp_path)  # type: ignore[operator]
    raw = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stream = decoders.DecodeStream(skip_special_tokens=True)
    assert "".join(stream.step(raw, token) or "" for token in tokens) == text
    assert tokenizer.decode(tokens)


def test_special_tokens_are_no_text(tmp_path: Path) -> None:
    tokenizer = of_byte_pairs(tmp_path)
    end = tokenizer.encode("<|endoftext|>")
    assert len(end) == 1
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push(end[0]) == "" == tokenizer.decode(end)


def test_an_id_beyond_the_tokenizer_is_no_text(tmp_path: Path) -> None:
    """Vocabularies are padded: the model may choose an id that the tokenizer has not."""
    tokenizer = of_bytes(tmp_path)
    assert tokenizer.detokenizer().push(300) == "" == tokenizer.decode([300])


def test_a_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"no tokenizer\.json: pass token ids instead"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}'])
def test_a_damaged_tokenizer(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(SessionError, match=r"tokenizer\.json is damaged") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_prompt_of_undecodable_bytes(tmp_path: Path) -> None:
    """What Python makes of a command-line argument that is not UTF-8."""
    with pytest.raises(SessionError, match="not valid UTF-8"):
        of_bytes(tmp_path).encode(b"a\xff".decode("utf-8", "surrogateescape"))
