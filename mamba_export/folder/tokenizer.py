"""Text to tokens and back, by a folder's ``tokenizer.json`` and the ``tokenizers`` library."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from mamba_export import contract, given
from mamba_export.errors import SessionError
from mamba_export.folder.bytes_tokenizer import byte_characters
from mamba_export.folder.detokenizer import (
    REPLACEMENT,
    ByteDetokenizer,
    ContextDetokenizer,
    Detokenizer,
)
from mamba_export.folder.tokenizer_calls import (
    MOST_GROWTH,
    check_growth,
    decoder_may_panic,
    growth,
    reporting,
)
from mamba_export.untrusted import JSON_LIMIT, is_there, read_text

_PROMPT_CONTEXT = 64  # tokens of a prompt that a continuation's text may depend on


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of an exported folder, from its ``tokenizer.json``.

    Raises:
        SessionError: there is none, or it cannot be read.
    """
    path = given.path(folder, "the folder", SessionError) / contract.TOKENIZER_FILE
    if not is_there(path, error=SessionError):
        raise SessionError(
            f"{folder} has no {contract.TOKENIZER_FILE}: pass token ids instead of text"
        )
    content = read_text(path, error=SessionError, limit=JSON_LIMIT)
    with reporting(f"{path} is damaged ({{reason}}): export the model again"):
        tokenizer = tokenizers.Tokenizer.from_str(content)
    return Tokenizer(tokenizer, str(path))


class Tokenizer:
    """Text to tokens and back, by a tokenizer of the ``tokenizers`` library.

    Args:
        tokenizer: it is changed: padding and truncation are switched off, as transformers does where a text is
            encoded without asking for them.
        name: of its file, for messages.

    Raises:
        SessionError: it may lengthen texts by more than ``MOST_GROWTH``.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, name: str = contract.TOKENIZER_FILE
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._name = name
        before_model = growth(tokenizer.normalizer, tokenizer.pre_tokenizer)
        self._encoding_growth = before_model * growth(tokenizer.post_processor)
        self._decoding_growth = growth(tokenizer.decoder)
        if max(self._encoding_growth, self._decoding_growth) > MOST_GROWTH:
            raise SessionError(
                f"{name} may lengthen a text more than {MOST_GROWTH} times: use another tokenizer"
            )
        added = tokenizer.get_added_tokens_decoder()
        # The library does not leave out those whose spelling a normalizer changes.
        self._special = frozenset(
            token
            for token, one in added.items()
            if one.special and tokenizer.id_to_token(token) == one.content
        )
        kinds = _kinds(tokenizer.decoder)
        self._bytes = _TokenBytes(tokenizer, self._special) if kinds == ["ByteLevel"] else None
        self._decoder_may_panic = decoder_may_panic(tokenizer.decoder)
        self._has_byte_tokens = "ByteFallback" in kinds
        self._anchor = self._find_anchor() if self._has_byte_tokens else None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the tokens that the tokenizer itself adds around it.

        Raises:
            SessionError: the text is not valid Unicode (undecodable bytes of a command line), or the tokenizer
                fails on it.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise SessionError("the prompt is not valid UTF-8") from error
        check_growth(len(text), self._encoding_growth, self._name)
        with reporting(f"{self._name} cannot encode the prompt ({{reason}})"):
            return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: Sequence[int], *, after: Sequence[int] = ()) -> str:
        """Text of tokens, special tokens left out; U+FFFD where bytes are not valid UTF-8.

        Args:
            tokens: ids; those that the tokenizer has not are left out too.
            after: tokens before them, of which the text is not returned. A continuation's text begins with
                the space that stands between it and its prompt, which decoders take off the start of a text.

        Raises:
            SessionError: the tokenizer fails on them.
        """
        before = self._context(after)
        whole = self._decode([*before, *tokens])
        known = self._decode(before) if before else ""
        if REPLACEMENT not in whole and whole.startswith(known):
            return whole[len(known) :]
        detokenizer = self.detokenizer(after)
        return "".join([*map(detokenizer.push, tokens), detokenizer.finish()])

    def detokenizer(self, after: Sequence[int] = ()) -> Detokenizer:
        """A fresh incremental decoder; its pieces joined are ``decode`` of the tokens.

        Args:
            after: as in ``decode``.
        """
        made: Detokenizer
        if self._bytes is not None:
            made = ByteDetokenizer(self._bytes.__getitem__)
        else:
            made = ContextDetokenizer(
                self._decode,
                self._spelling,
                has_byte_tokens=self._has_byte_tokens,
                anchor=self._anchor,
            )
        for token in self._context(after):
            made.push(token)
        return made

    def _context(self, tokens: Sequence[int]) -> list[int]:
        """The last tokens that have text, as many as what follows may depend on."""
        with_text = (token for token in reversed(tokens) if self._spelling(token) is not None)
        return list(itertools.islice(with_text, _PROMPT_CONTEXT))[::-1]

    def _spelling(self, token: int) -> str | None:
        return None if token in self._special else self._tokenizer.id_to_token(token)

    def _decode(self, tokens: Sequence[int]) -> str:
        if self._decoding_growth > 1:
            characters = sum(len(self._spelling(token) or "") for token in tokens)
            check_growth(characters, self._decoding_growth, self._name)
        message = f"{self._name} cannot decode the model's tokens ({{reason}})"
        with reporting(message, hold_standard_error=self._decoder_may_panic):
            return str(self._tokenizer.decode(tokens))

    def _find_anchor(self) -> int | None:
        """See ``ContextDetokenizer``: a letter or a word that its decoder leaves as it is."""
        for token in range(self._tokenizer.get_vocab_size()):
            spelling = self._spelling(token)
            if spelling is not None and spelling.isalnum() and self._decode([token]) == spelling:
                return token
        return None


class _TokenBytes:
    """Bytes of a byte-level tokenizer's tokens, looked up once a token."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        self._known = dict.fromkeys(special, b"")

    def __getitem__(self, token: int) -> bytes:
        found = self._known.get(token)
        if found is None:
            text = self._tokenizer.id_to_token(token) or ""  # padded vocabularies have unused ids
            if all(character in self._byte_of for character in text):
                found = bytes(self._byte_of[character] for character in text)
            else:  # an added token: its text stands for itself
                found = text.encode("utf-8")
            self._known[token] = found
        return found


def _kinds(decoder: Any) -> list[str]:
    """Types of the parts of a decoder, in order."""
    if decoder is None:
        return []
    return _kinds_of(json.loads(decoder.__getstate__()))


def _kinds_of(part: dict[str, Any]) -> list[str]:
    if part["type"] != "Sequence":
        return [part["type"]]
    return [kind for inner in part["decoders"] for kind in _kinds_of(inner)]
