"""The one printer of text that others wrote: names of tensors, paths, messages of libraries, a model's text.

A terminal obeys escape sequences, rich reads ``[markup]``, and a line break or a change of the writing
direction makes one line look like another. What a file says must do none of that. Imports nothing of ours.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""What changes the direction of writing (Unicode's Bidi_Control)."""
_BREAKS = "\u2028\u2029"


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}"


_CONTROLS = {
    code: _escape(chr(code)) for code in range(0x100) if unicodedata.category(chr(code)) == "Cc"
}
"""C0, DEL and C1: C1's CSI (0x9b) begins an escape sequence as ESC [ does."""

_OF_NAMES = {
    **_CONTROLS,
    **{ord(character): _escape(character) for character in _DIRECTIONS + _BREAKS},
    **{code: _escape(chr(code)) for code in range(0xD800, 0xE000)},
}
_OF_TEXTS = {code: shown for code, shown in _CONTROLS.items() if chr(code) not in "\t\n"}


def printable(text: str) -> str:
    r"""``text`` as one line that every terminal shows as it is and every encoding of Unicode can hold.

    Control characters, line breaks, tabs, changes of direction and lone surrogates (bytes of a name that are
    not UTF-8) become escapes such as ``\x1b`` and ``\n``. Other text stays.
    """
    return text.translate(_OF_NAMES)


def printable_lines(text: str) -> str:
    """A text of many lines, as a model writes it, for a terminal: control characters become escapes.

    Line breaks and tabs stay, and so do marks of direction, which Arabic and Hebrew need.
    """
    return text.translate(_OF_TEXTS)


def as_text(text: str, style: str = "") -> Text:
    """``printable(text)`` for rich, which reads no markup in it."""
    from rich.text import Text

    return Text(printable(text), style)
