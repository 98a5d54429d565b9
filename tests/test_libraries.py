"""The finder of compiled files: installed, named by the environment, switched off, absent."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mamba_export.libraries import CUSTOM_OPS, KERNELS, TRT_PLUGIN, CompiledFile

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
    monkeypatch.syspath_prepend(str(tmp_path))  # what site-packages is to an editable installation
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
    monkeypatch.setenv(library.variable, str(tmp_path / "nothing.so"))
    with pytest.raises(library.error, match=rf"{library.variable}=.*nothing\.so is not a file"):
        library.path()
    with pytest.raises(library.error):
        library.why_absent()


@each
def test_switched_off(library: CompiledFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.variable, "none")
    assert library.path() is None
    assert library.why_absent().endswith(f"switched off by {library.variable}=none")
