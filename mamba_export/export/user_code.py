"""Lines of a user's own code: where an error was raised, and where a size was fixed."""

from __future__ import annotations

import contextlib
import linecache
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = str(Path(__file__).parents[1])
MULTIPLE = -1
"""Key of ``fixed_sizes`` under which no size stands."""


def place(frames: Iterable[traceback.FrameSummary]) -> str:
    """The last frame that is neither a library's nor ours, as " (file, line N: code)"; empty without one."""
    found = [
        frame
        for frame in frames
        if not frame.filename.startswith((_TORCH, _PACKAGE, "<"))
        and "site-packages" not in frame.filename
        and frame.name != "<module>"
    ]
    if not found:
        return ""
    frame = found[-1]
    code = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f" ({Path(frame.filename).name}, line {frame.lineno}: {code})"


def place_of(trace: str) -> str:
    """``place`` for a traceback that PyTorch noted as text at a node of its graph."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (.+)', trace)
    return place(traceback.FrameSummary(file, int(line), name) for file, line, name in found)


@contextlib.contextmanager
def fixed_sizes() -> Iterator[dict[int, str]]:
    """Block in which the first line that fixes a dynamic size to a number is remembered, by that number.

    ``MULTIPLE`` has the first line that takes only sizes which a number divides. PyTorch says which size was
    fixed and not where; it decides so in ``ShapeEnv._set_replacement`` and ``ShapeEnv._add_divisible``.
    """
    places: dict[int, str] = {}
    decide, divide = ShapeEnv._set_replacement, ShapeEnv._add_divisible

    def remember(self: ShapeEnv, symbol: Any, target: Any, message: str) -> None:
        if getattr(target, "is_Integer", False):
            places.setdefault(int(target), place(traceback.extract_stack()))
        decide(self, symbol, target, message)

    def remember_multiple(self: ShapeEnv, remainder: Any) -> None:
        places.setdefault(MULTIPLE, place(traceback.extract_stack()))
        divide(self, remainder)

    ShapeEnv._set_replacement = remember  # type: ignore
    ShapeEnv._add_divisible = remember_multiple  # type: ignore
    try:
        yield places
    finally:
        ShapeEnv._set_replacement = decide  # type: ignore
        ShapeEnv._add_divisible = divide  # type: ignore
