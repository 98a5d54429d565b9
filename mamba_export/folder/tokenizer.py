"""Text to tokens and back, and the text of tokens that arrive one at a time.

``tokenizers``' ``DecodeStream`` alone is not enough: it holds bytes that are not UTF-8 back without bound,
raises on some of them, and has no end (tests/test_runtime_tokenizer.py shows each). So tokenizers of bytes go
through Python's incremental UTF-8 decoder, and for the others what DecodeStream holds back is bounded here.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers.decoders import DecodeStream

from mamba_export import contract
from mamba_export.errors import SessionError, first_line
from mamba_export.folder.bytes_tokenizer import byte_characters


class Detokenizer(Protocol):
    """Turns tokens into text as they arrive, never printing half a character."""

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        ...

    def finish(self) -> str:
        """What is left: a replacement character where a character never got finished."""
        ...


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of an exported folder, from its ``tokenizer.json``.

    Raises:
        SessionError: there is none, or it cannot be read.
    """
    path = Path(folder) / contract.TOKENIZER_FILE
    if not path.is_file():
        raise SessionError(
            f"{folder} has no {contract.TOKENIZER_FILE}: pass token ids instead of text"
        )
    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises plain Exception
        raise SessionError(
            f"{path} is damaged ({first_line(error)}): export the model again"
        ) from error


class Tokenizer:
    """Text to tokens and back, by a tokenizer of the ``tokenizers`` library."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, one in added.items() if one.special)
        is_byte_level = isinstance(tokenizer.decoder, tokenizers.decoders.ByteLevel)
        self._bytes = _TokenBytes(tokenizer, self._special) if is_byte_level else None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the tokens that the tokenizer itself adds around it.

        Raises:
            SessionError: the text is not valid Unicode (undecodable bytes of a command line).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise SessionError("the prompt is not valid UTF-8") from error
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens, special tokens left out; U+FFFD where bytes are not valid UTF-8."""
        return str(self._tokenizer.decode(tokens))

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental decoder; its pieces joined are ``decode`` of the tokens.

        Where bytes are not UTF-8 that holds for tokenizers of bytes alone: others decode such a run as a
        whole, and each of its bytes may come as a U+FFFD here.
        """
        if self._bytes is not None:
            return _ByteDetokenizer(self._bytes)
        return _StreamDetokenizer(self._tokenizer, self._special)


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


class _ByteDetokenizer:
    """Exact and of constant memory: bytes through Python's incremental UTF-8 decoder."""

    def __init__(self, token_bytes: _TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._token_bytes[token])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _StreamDetokenizer:
    """For decoders that are no map from token to bytes: ``DecodeStream``, with what it holds back bounded.

    ``_context`` are the last tokens whose text is out; some decoders treat the first token of a text
    differently (a leading space), so a stream that starts anew reads them first.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._context: list[int] = []
        self._pending: list[int] = []
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        if token in self._special or self._tokenizer.id_to_token(token) is None:
            return ""  # it has no text, and DecodeStream would remember it until there is some
        self._pending.append(token)
        try:
            piece = self._stream.step(self._tokenizer, token)
        except Exception:  # the library raises plain Exception: "Invalid prefix"
            return self.finish()
        if piece is not None:
            self._context, self._pending = self._pending, []
            return piece
        # A character has at most four bytes, so with four tokens pending it is invalid, not unfinished.
        return "" if len(self._pending) < 4 else self.finish()

    def finish(self) -> str:
        before = self._tokenizer.decode(self._context)
        piece = self._tokenizer.decode(self._context + self._pending)[len(before) :]
        self._restart()
        return str(piece)

    def _restart(self) -> None:
        self._pending = []
        self._stream = DecodeStream(skip_special_tokens=True)
        for token in self._context:
            self._stream.step(self._tokenizer, token)
