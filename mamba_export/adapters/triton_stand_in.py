"""``triton`` for a model that imports it at the top on a machine without it: kernels are defined, never run."""

from __future__ import annotations

import ast
import importlib.util
import linecache
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import Any

from mamba_export.adapters.stand_ins import absent

_NAME = "triton"


class _Named:
    """A name of triton's: a decorator, a type for annotations (``tl.constexpr``), a configuration."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        """``@triton.jit`` gives the kernel's stand-in; ``@triton.autotune(...)`` a decorator that does."""
        function = arguments[0] if len(arguments) == 1 else None
        if callable(function) and not isinstance(function, _Named):
            return _Named(getattr(function, "__name__", "kernel"))
        return self

    def __getitem__(self, grid: Any) -> Any:
        return absent(f"the Triton kernel {self._name}", "Triton is not installed")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(f"{self._name}.{name}")


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(f"{self.__name__}.{name}")


class TritonFinder(MetaPathFinder, Loader):
    """Finds triton where nothing else does, and only for an import that is not guarded.

    ``try: import triton`` is to fail as it would: such a model then takes its own PyTorch path, and libraries
    that ask whether triton is there get the truth. Without a ``try`` the model could not be imported at all.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module of stand-ins for triton and what is in it, or None."""
        if fullname.partition(".")[0] != _NAME:
            return None
        if _NAME not in sys.modules and not _is_plain_import(_importing_frame()):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module that has every name."""
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: names are made when they are asked for."""


def install() -> TritonFinder | None:
    """Add the finder behind all others; None where triton is installed."""
    if importlib.util.find_spec(_NAME) is not None:
        return None
    finder = TritonFinder()
    sys.meta_path.append(finder)
    return finder


def remove(finder: TritonFinder) -> None:
    """Take the finder and its modules away."""
    sys.meta_path.remove(finder)
    for name, module in list(sys.modules.items()):
        if isinstance(module, _Module):
            del sys.modules[name]


def _importing_frame() -> FrameType | None:
    """The frame that holds the import statement."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame


def _is_plain_import(frame: FrameType | None) -> bool:
    """Whether the frame's line is an import statement outside every ``try``."""
    if frame is None:
        return False
    try:
        tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
    except SyntaxError:
        return False
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    return any(
        isinstance(node, (ast.Import, ast.ImportFrom))
        and node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno)
        and id(node) not in guarded
        for node in ast.walk(tree)
    )
