"""Headless Chromium for tests of pages: what they need to have, and scripts of tests/web that drive it."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent / "web"
NODE = shutil.which("node")
_PLAYWRIGHT = Path(__file__).parents[1] / "build" / "playwright-core" / "index.mjs"
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

needs_node = pytest.mark.skipif(NODE is None, reason="no node")
_NEEDED = (
    needs_node,
    pytest.mark.skipif(_CHROMIUM is None, reason="no chromium (Debian: apt install chromium)"),
    pytest.mark.skipif(
        not _PLAYWRIGHT.is_file(),
        reason="no playwright-core: `make build/playwright-core/.unpacked`, with npm, gets it",
    ),
)


def needs_chromium(test: Any) -> Any:
    """Mark a test that opens a page."""
    return functools.reduce(lambda marked, mark: mark(marked), _NEEDED, test)


def seen_by(script: str, **options: Any) -> Any:
    """What a script of tests/web saw, as its JSON says."""
    given = {"playwright": str(_PLAYWRIGHT), "chromium": _CHROMIUM, **options}
    result = subprocess.run(
        [str(NODE), SCRIPTS / script, json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
