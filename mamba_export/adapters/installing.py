"""Puts the adapters where models look for mamba_ssm and causal_conv1d, and takes them away again."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from mamba_export.adapters import triton_stand_in
from mamba_export.adapters.guards import DeviceGuard
from mamba_export.adapters.names import MODULES
from mamba_export.errors import MambaExportWarning

_MISSING = object()
_TOPS = {name.partition(".")[0] for name in MODULES}
_FLAG = "WITH_SELECTIVESCAN"
"""Start of the flags by which VMamba and its relatives remember which modules they found."""

_ACTIVE: list[Installation] = []


def is_active() -> bool:
    """Whether the adapters are installed now."""
    return bool(_ACTIVE)


class Installation:
    """What one installation changed, so that ``undo`` can put it back.

    A package that is not there becomes a module of ours in ``sys.modules``. One that is there keeps its
    modules; the names that we provide are replaced in them, and in every module that holds the same objects
    by ``from ... import``.
    """

    def __init__(self) -> None:
        self._made: list[str] = []
        self._replaced: list[tuple[ModuleType, str, Any]] = []
        self._triton: triton_stand_in.TritonFinder | None = None

    def do(self) -> None:
        """Install; says which modules have fallen back to code of their own before.

        A model looks for mamba_ssm once, when its module is imported.
        """
        for user, name in _fallen_back():
            warnings.warn(
                f"{user} was imported before the adapters and goes on without them ({name}): import "
                "mamba_export.adapters.mamba_ssm first, or import it again with importlib.reload",
                MambaExportWarning,
                stacklevel=3,
            )
        self._triton = triton_stand_in.install()
        self._replace(torch.cuda, "device", DeviceGuard)
        _ACTIVE.append(self)
        for name, contents in MODULES.items():
            module = _imported(name)
            if module is None:
                self._make(name, dict(contents))
            else:
                for attribute, value in contents.items():
                    self._replace(module, attribute, value)

    def undo(self) -> None:
        """Put back what was there. What models took meanwhile stays theirs, and goes on working."""
        if self in _ACTIVE:
            _ACTIVE.remove(self)
        for module, attribute, value in reversed(self._replaced):
            if value is _MISSING:
                delattr(module, attribute)
            else:
                setattr(module, attribute, value)
        for name in reversed(self._made):
            made = sys.modules.pop(name, None)
            parent, _, child = name.rpartition(".")
            if parent in sys.modules and getattr(sys.modules[parent], child, None) is made:
                delattr(sys.modules[parent], child)
        if self._triton is not None:
            triton_stand_in.remove(self._triton)
            self._triton = None
        self._replaced.clear()
        self._made.clear()

    def _make(self, name: str, contents: dict[str, Any]) -> None:
        module = ModuleType(name, f"{name}, as mamba_export.adapters has it.")
        module.__spec__ = ModuleSpec(name, loader=None, origin=__name__, is_package=True)
        module.__path__ = []  # a package without files: its modules are made here too
        module.__dict__.update(contents)
        sys.modules[name] = module
        self._made.append(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)

    def _replace(self, module: ModuleType, attribute: str, value: Any) -> None:
        before = getattr(module, attribute, _MISSING)
        self._replaced.append((module, attribute, before))
        setattr(module, attribute, value)
        if before is _MISSING or before is None:
            return
        for holder in list(sys.modules.values()):
            held = getattr(holder, "__dict__", {})
            for name in [name for name, one in list(held.items()) if one is before]:
                self._replaced.append((holder, name, before))
                setattr(holder, name, value)


def _fallen_back() -> Iterator[tuple[str, str]]:
    """Modules that hold None where a name of ours was not found, or a flag that says so; and which."""
    ours = {name for contents in MODULES.values() for name in contents} | set(MODULES)
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in (*_TOPS, "torch", "transformers", "mamba_export"):
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if (name in ours and value is None) or (name.startswith(_FLAG) and value is False):
                yield module_name, f"{name} is {value}"
                break


def _imported(name: str) -> ModuleType | None:
    """The real module; None where it is not installed or does not load here."""
    top = name.partition(".")[0]
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        return None
    try:
        return importlib.import_module(name)
    except Exception:  # a compiled package without its CUDA or Triton raises what it likes
        return None


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Block in which models find the adapters; what was there before is restored at its end.

    Import the model's own modules inside the block, or before it: names that they took from a real package are
    replaced too. A module that fell back because nothing was installed is to be imported again.
    """
    installation = Installation()
    try:
        installation.do()
        yield
    finally:
        installation.undo()
