"""Lines of a user's own code: where an error was raised, and where a size was fixed."""

from __future__ import annotations

import contextlib
import linecache
import re
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = str(Path(__file__).parents[1])


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


@dataclass
class FixedSizes:
    """Where a module fixed sizes while it was traced.

    lines: the first line that fixed an axis to a number, by that number.
    multiple: the first line that takes only sizes which a number divides.
    converted: sizes that became a number of Python's, which a loop or a shape then holds, with their lines.
    """

    lines: dict[int, str] = field(default_factory=dict)
    multiple: str = ""
    converted: list[tuple[int, str]] = field(default_factory=list)


def place_of(trace: str) -> str:
    """``place`` for a traceback that PyTorch noted as text at a node of its graph."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (.+)', trace)
    return place(traceback.FrameSummary(file, int(line), name) for file, line, name in found)


@contextlib.contextmanager
def fixed_sizes() -> Iterator[FixedSizes]:
    """Block in which the lines that fix a dynamic size are remembered.

    PyTorch says which size was fixed and not where; it decides so in ``ShapeEnv._set_replacement`` and
    ``ShapeEnv._add_divisible``, and makes a number of a size in ``SymNode.guard_int``.
    """
    found = FixedSizes()
    decide, divide = ShapeEnv._set_replacement, ShapeEnv._add_divisible
    convert = SymNode.guard_int

    def remember(self: ShapeEnv, symbol: Any, target: Any, message: str) -> None:
        if getattr(target, "is_Integer", False):
            found.lines.setdefault(int(target), place(traceback.extract_stack()))
        decide(self, symbol, target, message)

    def remember_multiple(self: ShapeEnv, remainder: Any) -> None:
        found.multiple = found.multiple or place(traceback.extract_stack())
        divide(self, remainder)

    def remember_number(self: SymNode, *args: Any, **kwargs: Any) -> int:
        varies = bool(self.expr.free_symbols)
        number = convert(self, *args, **kwargs)
        if varies:
            found.converted.append((number, place(traceback.extract_stack())))
        return number

    ShapeEnv._set_replacement = remember  # type: ignore
    ShapeEnv._add_divisible = remember_multiple  # type: ignore
    SymNode.guard_int = remember_number  # type: ignore
    try:
        yield found
    finally:
        ShapeEnv._set_replacement = decide  # type: ignore
        ShapeEnv._add_divisible = divide  # type: ignore
        SymNode.guard_int = convert  # type: ignore
