"""The house: which room may import which, with no circle, and what importing a room loads.

Imports are read from the source, those inside functions and behind TYPE_CHECKING too: what two rooms know of
each other is the question, not when they learn it.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "mamba_export"

CONTRACT = {"contract"}
WRITER = {"files"}
ROOMS: dict[str, set[str]] = {
    "contract": set(),
    "files": set(),
    "packing": CONTRACT,
    "operators": CONTRACT,
    "models": CONTRACT | WRITER | {"operators"},
    "adapters": CONTRACT | WRITER | {"operators", "models"},
    "folder": CONTRACT | WRITER,
    # A checkpoint's path is a model too: `export` loads it.
    "export": CONTRACT | WRITER | {"operators", "models", "folder", "adapters", "packing"},
    "generation": CONTRACT | {"folder"},
    "backends": CONTRACT | {"folder", "generation"},
    "backends.onnxruntime": CONTRACT | {"folder", "generation", "backends"},
    "backends.tensorrt": CONTRACT | WRITER | {"folder", "generation", "backends"},
    # Judges any runtime, through the registry, and knows none by name.
    "verify": CONTRACT
    | {"adapters", "operators", "models", "folder", "export", "generation", "backends", "packing"},
}
"""For each room those that it may import. The command line, on top, may import any; nothing imports it."""

TORCH_ROOMS = {"packing", "operators", "models", "adapters", "export", "verify", "cli"}
"""The rooms that may import torch; of the command line it is `doctor`, which reports its version."""


def modules() -> dict[str, Path]:
    """Every module of the package, by its name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """What a file imports, anywhere in it: modules of ours by their full names, others as they are written."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


IMPORTS = {name: set(imported(path)) - {name} for name, path in MODULES.items()}


def room(module: str) -> str:
    """A module's room; for a module beside the rooms its own name, "" for the package itself."""
    parts = module.split(".")[1:]
    nested = ".".join(parts[:2])
    return nested if nested in ROOMS else parts[0] if parts else ""


def test_no_circle() -> None:
    ours = {name: found & set(MODULES) for name, found in IMPORTS.items()}
    try:
        graphlib.TopologicalSorter(ours).prepare()
    except graphlib.CycleError as error:
        pytest.fail("these modules import each other: " + " <- ".join(error.args[1]))


def test_every_folder_is_a_room() -> None:
    folders = {room(name) for name, path in MODULES.items() if path.name == "__init__.py"}
    assert folders - {"", "cli"} <= set(ROOMS), "say in ROOMS what a new room may import"


def test_rooms_import_what_they_may() -> None:
    beside = {room(name) for name in MODULES} - set(ROOMS) - {"", "cli", "__main__", "nn"}
    wrong = []
    for name, found in IMPORTS.items():
        here = room(name)
        if here in {"", "cli", "__main__", "nn"}:  # the doors: a user's entries
            continue
        may = beside | ROOMS.get(here, set()) | {here}
        wrong += [
            f"{name} imports {other}"
            for other in sorted(found & set(MODULES))
            if room(other) not in may
        ]
    assert not wrong


def test_nothing_imports_the_command_line() -> None:
    users = {
        name
        for name, found in IMPORTS.items()
        if any(room(o) == "cli" for o in found & set(MODULES))
    }
    assert {room(name) for name in users} == {"cli", "__main__"}


def test_torch_stays_where_models_are() -> None:
    users = {
        name
        for name, found in IMPORTS.items()
        if any(other.partition(".")[0] in ("torch", "triton") for other in found)
    }
    assert {room(name) for name in users} <= TORCH_ROOMS


def test_onnxruntime_is_imported_in_one_room() -> None:
    """Whose ``__init__`` switches ONNX Runtime's telemetry off before the import (test_no_socket.py)."""
    tools = sorted((ROOT / "tools").rglob("*.py"))
    found = {**IMPORTS, **{str(path): set(imported(path)) for path in tools}}
    users = {
        name
        for name, others in found.items()
        if any(other.partition(".")[0] == "onnxruntime" for other in others)
    }
    assert users
    assert {name.rpartition(".")[0] for name in users} == {"mamba_export.backends.onnxruntime"}
    loaded_by_name = [
        name
        for name, path in [*MODULES.items(), *((str(path), path) for path in tools)]
        if re.search(r"import_(module|string)\(.onnxruntime", path.read_text(encoding="utf-8"))
    ]
    assert not loaded_by_name


def test_the_contract_imports_nothing() -> None:
    found = {
        other.partition(".")[0]
        for name in MODULES
        if room(name) == "contract"
        for other in IMPORTS[name]
    }
    assert found <= {PACKAGE, *sys.stdlib_module_names}


def test_the_reader_of_untrusted_files_loads_no_library() -> None:
    """Every room reads through it."""
    found = IMPORTS["mamba_export.untrusted"]
    ours = {name for name in found if name.startswith(PACKAGE)}
    assert ours == {"mamba_export.errors", "mamba_export.printing"}
    assert {name.partition(".")[0] for name in found} <= {PACKAGE, *sys.stdlib_module_names}


RUNTIMES = {
    "torch",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_lean",
    "onnx_graphsurgeon",
}


@pytest.mark.parametrize(
    ("rooms", "may"),
    [
        (["contract", "folder", "generation", "backends"], set()),
        (["backends.onnxruntime"], {"onnxruntime"}),
        (["backends.tensorrt"], set()),  # TensorRT itself is imported when an engine is opened
    ],
    ids=["no runtime", "onnxruntime", "tensorrt"],
)
def test_importing_a_room_loads_no_other_runtime(rooms: list[str], may: set[str]) -> None:
    names = [name for name in MODULES if room(name) in rooms]
    assert len(names) > 5
    script = (
        "import importlib, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        f"print(sorted({RUNTIMES} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == str(sorted(may))
