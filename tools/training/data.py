"""Text of a byte-level model: reading, the split by lines, and the windows of a training step."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_export.errors import MambaExportError

END_OF_TEXT = 0
"""Token 0 (the byte NUL) ends a text, and stands before its beginning."""

HELD_OUT_FRACTION = 0.05
"""Share of the lines, the last ones, that is never trained on."""


class Split(NamedTuple):
    """The three parts of a text, in the order in which they follow each other; together, all of it."""

    train: bytes
    validation: bytes
    held_out: bytes


def read_text(path: Path) -> bytes:
    """The bytes of a text file.

    Raises:
        MambaExportError: the file is missing, unreadable, empty, or holds a byte 0.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise MambaExportError(f"{path}: cannot be read ({error.strerror})") from error
    if not text:
        raise MambaExportError(f"{path}: is empty; a text to train on is needed")
    position = text.find(END_OF_TEXT)
    if position >= 0:
        raise MambaExportError(
            f"{path}: holds a byte 0 at offset {position}; that byte is the end-of-text token, "
            "and no text file should contain it"
        )
    return text


def split_lines(text: bytes, validation: float = 0.0) -> Split:
    """Cut a text at line ends: the last 5 % of its lines are held out, ``validation`` of them before that.

    Args:
        text: bytes; lines end with a newline.
        validation: share of the lines for validation, in [0, 0.5].

    Returns:
        The parts; ``b"".join(parts) == text``.

    Raises:
        MambaExportError: the text has too few lines for the parts asked for.
    """
    lines = text.splitlines(keepends=True)
    count = len(lines)
    held_out = int(count * HELD_OUT_FRACTION)
    validated = math.ceil(count * validation)
    if held_out == 0 or held_out + validated >= count:
        raise MambaExportError(
            f"the text has {count} lines: too few to hold out 5 % of them; at least 20 are needed"
        )
    end = count - held_out
    start = end - validated
    return Split(b"".join(lines[:start]), b"".join(lines[start:end]), b"".join(lines[end:]))


class Windows:
    """Windows of a text for one training step after another, gathered on the device.

    The text is a circle with one end-of-text token at the seam. With ``carry``, the batch is ``batch``
    readers spread evenly over the circle, each going on where it stopped, so that the model's state can be
    carried from a step to the next; a pass ends when the readers have together read the whole text, and
    the next pass starts at a new random offset. Without, every window starts anywhere.

    Args:
        text: training text.
        batch, length: windows a step, and bytes predicted in each.
        carry: read on, or jump.
        seed: of the offsets.
        device: where the text lies and the windows are gathered.

    Raises:
        MambaExportError: the text is shorter than one window.
    """

    def __init__(
        self, text: bytes, batch: int, length: int, *, carry: bool, seed: int, device: torch.device
    ) -> None:
        if len(text) < length + 1:
            raise MambaExportError(
                f"the training text has {len(text)} bytes, fewer than one window of --length {length} "
                "and the byte after it: give a longer text or a smaller --length"
            )
        self.carry = carry
        self.length = length
        self._data = as_tokens(text, device)
        self._size = self._data.numel()
        self._steps = torch.arange(length + 1, device=device)
        self._spread = torch.arange(batch, device=device) * self._size // batch
        self._position = self._spread
        self._random = random.Random(seed)
        self._generator = torch.Generator(device).manual_seed(seed)
        self._left = 0  # steps until this pass over the text ends
        self.steps_per_pass = max(1, self._size // (batch * length))

    def next(self) -> tuple[Tensor, bool]:
        """(batch, length + 1) int64 ids, and whether they start a new pass (a carried state ends there)."""
        if not self.carry:
            self._position = torch.randint(
                self._size, self._spread.shape, generator=self._generator, device=self._data.device
            )
            new_pass = True
        else:
            new_pass = self._left == 0
            if new_pass:
                self._left = self.steps_per_pass
                self._position = self._spread + self._random.randrange(self._size)
            else:
                self._position = self._position + self.length
            self._left -= 1
        places = (self._position[:, None] + self._steps) % self._size
        return self._data[places].long(), new_pass


def as_tokens(text: bytes, device: torch.device | str = "cpu") -> Tensor:
    """(1 + len(text),) uint8: the end-of-text token, then the text's bytes."""
    return torch.frombuffer(bytearray([END_OF_TEXT]) + text, dtype=torch.uint8).to(device)
