"""The web page: its modules in Node, and the built page in headless Chromium against Python's session."""

from __future__ import annotations

import functools
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import NODE, SCRIPTS, needs_chromium, needs_node, seen_by

import build_web
from mamba_export import OrtSession, contract

ROOT = Path(__file__).parents[1]
PROMPTS = {"kjv-bytes": "In the beginning God", "kjv-bytes-mamba2": "Größe 漢字 😀 and "}
COUNT = 200

needs_runtime = pytest.mark.skipif(
    not (build_web.ONNXRUNTIME_WEB / ".unpacked").is_file(),
    reason=f"no onnxruntime-web: {build_web.GET_RUNTIME}",
)


def in_browser(test: Any) -> Any:
    return needs_runtime(needs_chromium(test))


@needs_node
def test_the_modules_of_the_page() -> None:
    result = subprocess.run(
        [str(NODE), "--test", SCRIPTS], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, made as `make web` makes it."""
    out = tmp_path_factory.mktemp("page") / "web"
    build_web.build([ROOT / "models" / name for name in PROMPTS], out)
    return out


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` serves with, without its log."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url(built: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@in_browser
@pytest.mark.parametrize("model", PROMPTS)
def test_the_page_writes_what_python_writes(url: str, built: Path, model: str) -> None:
    prompt = PROMPTS[model]
    length = len(prompt.encode())
    seen = seen_by("page.mjs", url=url, model=model, prompt=prompt, count=COUNT)
    session = OrtSession(built / model, providers=["CPUExecutionProvider"], threads=1)
    [expected] = session.generate(prompt, max_new_tokens=COUNT)
    assert len(expected.tokens) == COUNT
    assert seen["errors"] == []
    assert seen["text"] == prompt + str(expected.text)
    assert seen["read"] == str(length), "each typed byte is read once"
    assert seen["tokens"] == str(length + COUNT)
    assert float(seen["speed"]) > 0
    first, last = (float(ms) for ms in re.findall(r"([\d.]+) ms", seen["quickest"]))
    assert last < 2 * first, "the cost of a token grows"
    assert min(seen["colours"]) > 10, "a plot is blank"


@in_browser
def test_what_cannot_work_is_told_in_one_line(url: str, built: Path) -> None:
    model = next(iter(PROMPTS))
    metadata = json.loads((built / model / contract.METADATA_FILE).read_text("utf-8"))
    of_metadata = {"path": f"{model}/{contract.METADATA_FILE}"}
    cases = [
        {"name": "SIMD", "script": "WebAssembly.validate = () => false"},
        {"name": "format", **of_metadata, "body": json.dumps({**metadata, "format": 99})},
        {"name": "missing", **of_metadata, "status": 404},
        {"name": "graph", "path": f"{model}/{contract.MODEL_FILE}", "body": "no graph"},
        {"name": "file", "url": (built / "index.html").as_uri()},
        {"name": "not built", "path": "contract.js", "status": 404},
    ]
    seen = seen_by("page.mjs", url=url, broken=cases)
    assert all("\n" not in line for line in seen.values())
    assert "WebAssembly SIMD" in seen["SIMD"]
    assert f"format 99, and this page reads format {contract.METADATA_FORMAT}" in seen["format"]
    assert f"{model}/{contract.METADATA_FILE} is not there: run make web" in seen["missing"]
    assert "ONNX Runtime refuses the exported model" in seen["graph"]
    assert "http.server" in seen["file"]
    assert "make web" in seen["not built"]
