"""What a family's entry says: where its class is, how a small model of it is made, what it is called with."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Trial:
    """A small model of a family, and the sizes at which it is tried.

    Args:
        model: of the repository's own class.
        inputs: makes example arguments, in forward's order, from sizes.
        traced: the sizes of the export.
        swept: sizes that were not traced, at which the file is compared.
        axes: dynamic axes by argument of forward, as ``export`` takes them; None for none.
        reduced: what was made smaller, in words.
    """

    model: nn.Module
    inputs: Callable[..., tuple[Tensor, ...]]
    traced: Sizes
    swept: tuple[Sizes, ...]
    axes: Any
    reduced: str


@dataclass(frozen=True)
class Family:
    """One entry.

    Args:
        name: of the family, which is its folder's unless ``folder`` says otherwise.
        repository: owner/name.
        cls: the class that is tried.
        build: makes the trial; called with the repository's folder, once the adapters are installed.
        note: a sentence for the page: what of the repository is left out, and why.
        folder: where the repository lies in the folder of all.
    """

    name: str
    repository: str
    cls: str
    build: Callable[[Path], Trial]
    note: str
    folder: str


FAMILIES: dict[str, Family] = {}
STAND_INS: list[str] = []
"""Modules that this process has stood in for."""


def family(
    repository: str, cls: str, *, name: str | None = None, note: str = ""
) -> Callable[[Callable[[Path], Trial]], Callable[[Path], Trial]]:
    """Decorator of a function that builds a trial: its entry in ``FAMILIES``."""
    folder = repository.rpartition("/")[2]

    def add(build: Callable[[Path], Trial]) -> Callable[[Path], Trial]:
        entry = Family(name or folder, repository, cls, build, note, folder)
        FAMILIES[entry.name] = entry
        return build

    return add


def on_path(folder: Path) -> None:
    """Let imports look into ``folder`` first."""
    sys.path.insert(0, str(folder))


def stand_in(name: str, **contents: Any) -> None:
    """A module that the repository imports and its model's forward does not need, with names of ours.

    Nothing is done where the real one can be imported. The record says which were stood in for.
    """
    try:
        importlib.import_module(name)
    except Exception:  # one that is there may not load here, and raises what it likes
        STAND_INS.append(name)
    else:
        return
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        full = ".".join(parts[:count])
        if full not in sys.modules:
            module = ModuleType(full)
            module.__path__ = []
            sys.modules[full] = module
            if count > 1:
                setattr(sys.modules[".".join(parts[: count - 1])], parts[count - 1], module)
    sys.modules[name].__dict__.update(contents)


def package_of(name: str, folder: Path) -> None:
    """A package whose modules are found in ``folder``, without running its ``__init__``.

    For a repository whose ``__init__`` imports data sets, servers or training.
    """
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


def definitions(path: Path, name: str) -> ModuleType:
    """A file's imports, functions and classes, without the statements that it runs when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Try)
    tree.body = [node for node in tree.body if isinstance(node, kept)]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    exec(compile(tree, str(path), "exec"), module.__dict__)
    return module
