"""The registry of runtimes: what it lists, and what it answers of what is not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from mamba_export.backends import registry
from mamba_export.errors import SessionError

ROOT = Path(__file__).parents[1] / "mamba_export/backends"


def test_every_folder_is_listed() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(registry.FOLDERS)


def test_every_option_is_one_runtimes() -> None:
    rows = registry.runtimes()
    assert len({row.option for row in rows}) == len(rows)
    assert len(registry.variants()) == sum(len(row.variants) for row in rows)
    assert len(set(registry.providers())) == sum(len(row.providers) for row in rows)


def test_every_variant_is_here_or_says_why_not(tmp_path: Path) -> None:
    for option in registry.variants():
        found, missing = registry.present([option], tmp_path)
        assert len(found) + len(missing) == 1, option
        assert all("\n" not in reason and reason for reason in missing.values())
    _, missing = registry.present(folder=tmp_path)
    assert str(tmp_path) in missing["TensorRT"], "without an engine there is no such backend"


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(SessionError, match="backend 'tpu' is unknown: use one of cpu, native"):
        registry.present(["tpu"])
    with pytest.raises(SessionError, match="backend 'tpu' is unknown: use one of ort, trt"):
        registry.runtime("tpu")
