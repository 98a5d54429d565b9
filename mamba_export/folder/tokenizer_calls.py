"""Calls into the ``tokenizers`` library on files that others wrote: every failure is one line.

The library is Rust. It panics on some files (a stride over the length, a missing special token, a regex that
backtracks), which is no ``Exception`` in Python and prints itself to the process's standard error; and a few
lines of a file can ask for a text that grows without bound, which it would begin to build.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

from mamba_export.errors import SessionError, first_line

MOST_GROWTH = 1024
"""How many times longer a part of a tokenizer may make a text. Those in use stay below 10."""
MOST_CHARACTERS = 1 << 24
"""Of a text that a part which lengthens texts may make: a minute and 3 GB in the library at the worst."""
_LONGEST_HONEST = 64  # bytes; NFKC's longest has 33


@contextlib.contextmanager
def reporting(message: str, *, hold_standard_error: bool = True) -> Iterator[None]:
    """Turn what the library raises, panics too, into a SessionError.

    Args:
        message: with ``{reason}`` in the place of what the library says.
        hold_standard_error: keep a panic's own text from it. Not for calls that cannot panic and come with
            every token: a signal's exception at the wrong moment would leave it moved aside.

    Raises:
        SessionError: the library failed; one line.
    """
    with _STANDARD_ERROR.held() if hold_standard_error else contextlib.nullcontext() as held:
        try:
            yield
        except Exception as error:  # the library raises plain Exception
            raise SessionError(message.format(reason=first_line(error))) from error
        except BaseException as error:
            if type(error).__module__ != "pyo3_runtime":  # Ctrl-C, an exit
                raise
            if held is not None:
                held.forget()
            raise SessionError(message.format(reason=first_line(error))) from error


class _HeldStandardError:
    """The process's standard error while calls run, which is written out afterwards but for a panic's own text.

    Rust prints a panic to file descriptor 2 itself and offers Python no way to stop that. Threads share one
    descriptor, so the first call to begin moves it aside, and the last to end brings it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._kept = self._real = -1  # file descriptors

    @contextlib.contextmanager
    def held(self) -> Iterator[_HeldStandardError]:
        is_counted = False
        try:  # from the first step on: a signal's exception may arrive between any two
            with self._lock:
                self._calls += 1
                is_counted = True
                if self._calls == 1:
                    self._move_aside()
            yield self
        finally:
            if is_counted:
                with self._lock:
                    self._calls -= 1
                    if self._calls == 0:
                        self._bring_back()

    def forget(self) -> None:
        """Drop what was written since the calls began."""
        with self._lock, contextlib.suppress(OSError):
            os.ftruncate(self._kept, 0)
            os.lseek(self._kept, 0, os.SEEK_SET)

    def _move_aside(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # it is closed, or this is no Linux
            if self._kept < 0:
                self._kept = os.memfd_create("standard error", os.MFD_CLOEXEC)
            self._real = os.dup(2)
            os.dup2(self._kept, 2)

    def _bring_back(self) -> None:
        if self._real < 0:
            return
        os.dup2(self._real, 2)
        real, self._real = self._real, -1
        os.close(real)
        if size := os.fstat(self._kept).st_size:
            with contextlib.suppress(OSError):
                os.write(2, os.pread(self._kept, size, 0))
            os.ftruncate(self._kept, 0)
            os.lseek(self._kept, 0, os.SEEK_SET)


_STANDARD_ERROR = _HeldStandardError()


def growth(*parts: Any) -> int:
    """How many times longer the parts of a tokenizer, one after another, may make a text; 1 where they cannot.

    A bound for the worst text, from what the parts say of themselves. Of what each kind does once to a text of
    Unicode (NFKD, bytes as characters, SentencePiece's table) nothing is counted: it is bounded and honest.

    Args:
        parts: normalizers, pre-tokenizers, post-processors or decoders of ``tokenizers``, or None.
    """
    product = 1
    seen: set[str] = set()
    for part in parts:
        if part is not None:
            for one in _flat(json.loads(part.__getstate__())):
                product *= _growth(one, one["type"] in seen)
                seen.add(one["type"])
    return product


def decoder_may_panic(decoder: Any) -> bool:
    """Whether a decoder has a part that is known to: a regex that backtracks, more to strip than there is."""
    parts = [] if decoder is None else _flat(json.loads(decoder.__getstate__()))
    return any("Regex" in part.get("pattern", ()) or part.get("stop") for part in parts)


def _flat(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a sequence, in order, and of sequences in it."""
    if part["type"] != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        for inner in part.get(key, ()):
            yield from _flat(inner)


def _growth(part: dict[str, Any], is_again: bool) -> int:
    kind = part["type"]
    if kind == "Prepend":  # once for each piece between added tokens
        return max(1, len(part["prepend"]))
    if kind == "Replace":
        content = len(part["content"])
        found = part["pattern"].get("String")
        if found:
            return max(1, -(-content // len(found)))
        return 1 + content  # a regex, or the empty text, may match between any two characters
    if kind == "TemplateProcessing":
        return max(1, sum("Sequence" in piece for piece in part["single"]))
    if kind == "ByteLevel":  # its characters for bytes have two bytes
        return 2 if is_again else 1
    if kind == "Precompiled":
        longest = _longest_replacement(base64.b64decode(part["precompiled_charsmap"]))
        return longest if is_again or longest > _LONGEST_HONEST else 1
    return 1


def _longest_replacement(table: bytes) -> int:
    """Bytes of the longest text in SentencePiece's table: a trie after its size, then texts with NULs."""
    size = int.from_bytes(table[:4], "little")
    return max(map(len, table[4 + size :].split(b"\0")))


def check_growth(characters: int, times: int, what: str) -> None:
    """Refuse to build a text that may become too long.

    Args:
        characters: of the text before.
        times: ``growth`` of what it goes through.
        what: names the file and what is done.

    Raises:
        SessionError: it may have more than ``MOST_CHARACTERS``.
    """
    if times > 1 and characters * times > MOST_CHARACTERS:
        raise SessionError(
            f"{what} may lengthen a text {times} times, and this one has {characters} characters: give a "
            "shorter one, or use a tokenizer that does not"
        )
