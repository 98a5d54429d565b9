"""The finder of compiled files: installed, named by the environment, switched off, absent."""

from __future__ import annotations

import dataclasses
import importlib
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

from mamba_export.libraries import CUSTOM_OPS, KERNELS, TRT_PLUGIN, CompiledFile, installed
from mamba_export.requirements import is_installed

each = pytest.mark.parametrize("library", [KERNELS, CUSTOM_OPS, TRT_PLUGIN], ids=lambda x: x.file)


@each
def test_installed_or_not(
    library: CompiledFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(library.variable, raising=False)
    absent = dataclasses.replace(library, file="libabsent.so")
    assert absent.path() is None
    assert absent.why_absent().startswith("libabsent.so is not installed with mamba_export: ")
    assert "build it" in absent.why_absent()
    found = tmp_path / "mamba_export" / "lib" / "libabsent.so"
    found.parent.mkdir(parents=True)
    found.touch()
    monkeypatch.setattr(
        site, "getsitepackages", lambda: [str(tmp_path)]
    )  # an editable installation's
    assert absent.path() == found
    assert absent.why_absent() == ""


@each
def test_the_environment_names_another(
    library: CompiledFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other.so"
    other.touch()
    monkeypatch.setenv(library.variable, str(other))
    assert library.path() == other
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(library.variable, "other.so")
    assert library.path() == other, "absolute: a loader looks for a bare name elsewhere"
    monkeypatch.setenv(library.variable, str(tmp_path / "nothing.so"))
    with pytest.raises(library.error, match=rf"{library.variable}=.*nothing\.so is not a file"):
        library.path()
    with pytest.raises(library.error):
        library.why_absent()
    monkeypatch.setenv(library.variable, "x" * 100_000)  # longer than any name
    with pytest.raises(library.error, match="is not a file") as caught:
        library.path()
    assert len(str(caught.value)) < 400


@each
def test_switched_off(library: CompiledFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.variable, "none")
    assert library.path() is None
    assert library.why_absent().endswith(f"switched off by {library.variable}=none")


# --- What lies where the program runs is not opened ----------------------------------------------------

PLANTED = "libplanted.so"
ASK = f"from mamba_export.libraries import installed; print(installed({PLANTED!r}))"
PACKAGES = [entry for entry in sys.path if Path(entry).is_absolute()]


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder with a library under mamba_export/lib, a program that asks for it, and a forged record."""
    library = tmp_path / "mamba_export" / "lib" / PLANTED
    library.parent.mkdir(parents=True)
    library.write_bytes(b"code of somebody else")
    (tmp_path / "ask.py").write_text(ASK + "\n")
    record = tmp_path / "mamba_export-9.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: mamba_export\nVersion: 9\n")
    (record / "RECORD").write_text(f"mamba_export/lib/{PLANTED},,\n")
    return tmp_path


def _asked(folder: Path, *arguments: str, path: tuple[str, ...] = ()) -> str:
    """What a process in the folder prints; ``path`` stands before our packages in PYTHONPATH."""
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((*path, *PACKAGES))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.parametrize(
    "arguments",
    [("-c", ASK), ("-m", "ask"), ("ask.py",)],
    ids=["empty entry", "module", "script"],
)
@pytest.mark.parametrize(
    "path", [(), ("",), (".",), ("./",)], ids=["plain", "empty", "dot", "dots"]
)
def test_a_library_planted_in_the_current_folder_is_not_found(
    planted: Path, arguments: tuple[str, ...], path: tuple[str, ...]
) -> None:
    assert _asked(planted, *arguments, path=path) == "None"


def test_a_library_beside_a_script_or_in_a_folder_named_relatively_is_not_found(
    planted: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert _asked(elsewhere, str(planted / "ask.py")) == "None"
    relative = os.path.relpath(planted, elsewhere)
    assert _asked(elsewhere, "-c", ASK, path=(relative,)) == "None"
    assert _asked(planted, "-c", ASK, path=(str(planted),)) == "None", (
        "the current folder by its name"
    )


def test_an_absolute_entry_of_pythonpath_may_hold_the_libraries(
    planted: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Sources in one entry, compiled files in a later one, as developers and images of GPU machines have it."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((*PACKAGES, str(planted)))}
    found = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=elsewhere,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(planted / "mamba_export" / "lib" / PLANTED)


def test_entries_of_sys_path_alone_are_not_looked_at(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(planted))
    monkeypatch.chdir(planted)
    monkeypatch.setattr(sys, "path", ["", ".", *sys.path])
    assert installed(PLANTED) is None


@pytest.mark.parametrize("name", ["absent_package", "tensorrt_absent"])
def test_a_folder_of_data_named_as_a_package_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As repositories of users have folders named tensorrt and triton, and Python looks there first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert not is_installed(name)
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.plan").touch()
    importlib.invalidate_caches()
    assert not is_installed(name)
    assert is_installed("numpy")
