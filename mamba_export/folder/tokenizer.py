"""Text to tokens and back, and the text of tokens that arrive one at a time."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Protocol

import tokenizers

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
        is_byte_level = isinstance(tokenizer.decoder, tokenizers.decoders.ByteLevel)
        self._bytes = _TokenBytes(tokenizer) if is_byte_level else None

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
        """A fresh incremental decoder; its pieces joined are ``decode`` of the tokens."""
        if self._bytes is not None:
            return _ByteDetokenizer(self._bytes)
        return _WindowDetokenizer(self._tokenizer)


class _TokenBytes:
    """Bytes of a byte-level tokenizer's tokens, looked up once a token."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        added = tokenizer.get_added_tokens_decoder()
        self._known = {token: b"" for token, content in added.items() if content.special}

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


class _WindowDetokenizer:
    """For decoders that are no map from token to bytes: decode a short window again at each token.

    ``_context`` are tokens whose text is out already; they stay in the window because some decoders
    treat the first token of a text differently (a leading space).
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        self._pending.append(token)
        piece = self._piece()
        # A character has at most four bytes, so with four tokens pending it is invalid, not unfinished.
        if (not piece or piece.endswith("\ufffd")) and len(self._pending) < 4:
            return ""
        self._context, self._pending = self._pending, []
        return piece

    def finish(self) -> str:
        piece, self._pending = self._piece(), []
        return piece

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._context)
        return str(self._tokenizer.decode(self._context + self._pending))[len(before) :]
