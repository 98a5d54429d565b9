"""Versions of installed packages, for records and metadata. Imports nothing of ours."""

from __future__ import annotations

import platform
from importlib import metadata


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of ``packages``, by name; "not installed" for what is not."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
