#!/usr/bin/env python3
"""Put the web page together: docs/web, exported models, ONNX Runtime's files for browsers. `make web` runs it.

    python tools/build_web.py models/kjv-bytes models/kjv-bytes-mamba2 -o build/web

The result is a folder of static files: any web server serves it. Existing files there are replaced.
Exit code 0: done; 2: bad input.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mamba_export import contract
from mamba_export.cli import exit_with
from mamba_export.errors import MambaExportError
from mamba_export.export import export
from mamba_export.files import write_text

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "docs" / "web"
ONNXRUNTIME_WEB = ROOT / "build" / "onnxruntime-web"
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Of onnxruntime-web: its module for WebAssembly alone, and what that loads."""
GET_RUNTIME = "`make build/onnxruntime-web/.unpacked`, with npm, gets it"


def contract_module(models: Sequence[str]) -> str:
    """What the page takes from mamba_export.contract, as a JavaScript module."""
    names = {
        "metadataFile": contract.METADATA_FILE,
        "metadataFormat": contract.METADATA_FORMAT,
        "modelFile": contract.MODEL_FILE,
        "weightsFile": contract.WEIGHTS_FILE,
        "tokenizerFile": contract.TOKENIZER_FILE,
        "recurrentState": contract.PAST_RECURRENT_STATE,
        "models": list(models),
    }
    return f"// Written by tools/build_web.py.\nexport default {json.dumps(names, indent=2)};\n"


def build(models: Sequence[Path], out: Path) -> None:
    """Write the page of these checkpoints into ``out``.

    Raises:
        MambaExportError: onnxruntime-web is not there, or a checkpoint cannot be exported.
    """
    for name in RUNTIME_FILES:
        if not (ONNXRUNTIME_WEB / name).is_file():
            raise MambaExportError(f"no {name} of onnxruntime-web: {GET_RUNTIME}")
    (out / "ort").mkdir(parents=True, exist_ok=True)
    for name in RUNTIME_FILES:
        shutil.copy(ONNXRUNTIME_WEB / name, out / "ort" / name)
    for source in sorted(SOURCES.iterdir()):
        shutil.copy(source, out / source.name)
    write_text(out / "contract.js", contract_module([model.name for model in models]))
    for model in models:
        export(model, out / model.name, force=True)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, help="folders of checkpoints")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    build(given.models, given.out)
    print(
        f"{given.out} is ready: python3 -m http.server -d {given.out}, then http://localhost:8000"
    )


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
