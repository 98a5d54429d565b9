"""The text of tokens that arrive one at a time: whole characters only, and in the end the text of them all.

``tokenizers``' own ``DecodeStream`` is not enough: it holds bytes that are not UTF-8 back without bound, raises
on some of them, and has no end (tests/test_runtime_tokenizer.py shows each).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LONGEST_CHARACTER = 4  # bytes of UTF-8
_LONGEST_CONTEXT = 64  # tokens


class Detokenizer(Protocol):
    """Turns tokens into text as they arrive, never printing half a character."""

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        ...

    def finish(self) -> str:
        """What is left: a replacement character where a character never got finished."""
        ...


class ByteDetokenizer:
    """For tokens that stand for bytes: exact and of constant memory, by Python's incremental UTF-8 decoder.

    Args:
        token_bytes: bytes of a token.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._token_bytes(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ContextDetokenizer:
    """For every other decoder: the text that a token adds behind the tokens before it.

    Decoders look at a token's neighbours: the first token of a text loses its space, the last one of a word
    its end. So a token's text is that of context and token, without the context's. The context is as much of
    the text before as has some text itself, so that what a decoder takes off a text's start is taken off there.

    A character of several tokens waits for its end. Where the decoder joins tokens such as ``<0xE6>``, one byte
    that is not UTF-8 makes replacement characters of the whole run, of what is out already too. So they are
    decoded a character at a time: what is valid stays, and each byte that is not is a replacement character.

    Args:
        decode: text of tokens from the start of a text.
        spelling: a token as the vocabulary writes it; None where it has no text (special tokens, unused ids).
        has_byte_tokens: the decoder joins tokens such as ``<0xE6>``.
        anchor: a token that is no byte and has text of its own, to stand before a byte that must not be joined
            with the one before it; None where there is none.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        spelling: Callable[[int], str | None],
        *,
        has_byte_tokens: bool,
        anchor: int | None,
    ) -> None:
        self._decode = decode
        self._spelling = spelling
        self._has_byte_tokens = has_byte_tokens
        self._anchor = [] if anchor is None else [anchor]
        self._context: list[int] = []
        self._context_text = ""
        self._follows_byte = False  # the last token was a byte,
        self._follows_invalid = False  # and no part of a character
        self._pending: list[int] = []
        self._pending_bytes = b""

    def push(self, token: int) -> str:
        spelling = self._spelling(token)
        if spelling is None:
            return ""
        found = _BYTE_TOKEN.fullmatch(spelling) if self._has_byte_tokens else None
        if found is not None:
            return self._push_byte(token, int(found[1], 16))
        before = self._flush_bytes()
        self._follows_byte = self._follows_invalid = False
        self._pending.append(token)
        text = self._decode(self._context + self._pending)
        if not text.endswith(REPLACEMENT):
            return before + self._take(text)
        # A character has at most four bytes, so with four tokens pending it is invalid, not unfinished.
        if len(self._pending) < _LONGEST_CHARACTER:
            return before
        return before + self._take_settled(text)

    def finish(self) -> str:
        piece = self._flush_bytes()
        if self._pending:
            piece += self._take(self._decode(self._context + self._pending))
        return piece

    def _push_byte(self, token: int, byte: int) -> str:
        piece = ""
        if self._pending and not self._pending_bytes:  # an unfinished character of other tokens
            piece = self._take(self._decode(self._context + self._pending))
        self._pending.append(token)
        self._pending_bytes += bytes([byte])
        while self._pending_bytes:
            try:
                self._pending_bytes.decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    return piece
                piece += self._take_bytes(1, is_valid=False)
            else:
                piece += self._take_bytes(len(self._pending), is_valid=True)
        return piece

    def _flush_bytes(self) -> str:
        """Text of the bytes of an unfinished character, now that it stays so."""
        piece = ""
        while self._pending_bytes:
            piece += self._take_bytes(1, is_valid=False)
        return piece

    def _take_bytes(self, count: int, *, is_valid: bool) -> str:
        rest, self._pending = self._pending[count:], self._pending[:count]
        self._pending_bytes = self._pending_bytes[count:]
        if self._follows_byte and not (is_valid and not self._follows_invalid):
            self._context = list(self._anchor)
            self._context_text = self._decode(self._context)
        piece = self._take(self._decode(self._context + self._pending))
        self._follows_byte, self._follows_invalid = True, not is_valid
        self._pending = rest
        return piece

    def _take_settled(self, text: str) -> str:
        """Take what stays as it is whatever comes: all but tokens at the end that may begin a character."""
        for count in range(len(self._pending) - 1, 0, -1):
            settled = self._decode(self._context + self._pending[:count])
            after = len(settled)
            if text.startswith(settled) and text.find(REPLACEMENT, after) == len(text) - 1:
                rest, self._pending = self._pending[count:], self._pending[:count]
                piece = self._take(settled)
                self._pending = rest
                return piece
        return self._take(text)

    def _take(self, text: str) -> str:
        """What ``text``, of context and pending tokens, has behind the context's; they are context then."""
        known = self._context_text
        piece = text[len(known) :] if text.startswith(known) else text[_shared(known, text) :]
        own = self._decode(self._pending)
        if own:
            self._context, self._context_text = self._pending, own
        else:
            self._context = (self._context + self._pending)[-_LONGEST_CONTEXT:]
            self._context_text = self._decode(self._context)
        self._pending = []
        return piece


def _shared(first: str, second: str) -> int:
    """Length of the start that two texts share."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
