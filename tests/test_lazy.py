"""Names that a package imports on first use."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from mamba_export.errors import MissingPackageError
from mamba_export.lazy import on_first_use

PACKAGES = ["mamba_export", "mamba_export.backends.onnxruntime", "mamba_export.backends.tensorrt"]


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_a_package_gives_and_lists_its_names(package: ModuleType) -> None:
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert callable(getattr(package, name)), name


def test_a_name_that_is_none_of_its(package: ModuleType) -> None:
    with pytest.raises(
        AttributeError, match=rf"module '{package.__name__}' has no attribute 'nil'"
    ):
        _ = package.nil


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    get, names = on_first_use("mine", {"session": "mine.session"}, also=["version"])
    assert names() == ["session", "version"]

    def absent(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name="onnxruntime")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingPackageError, match=r"needs onnxruntime.*pip install"):
        get("session")
