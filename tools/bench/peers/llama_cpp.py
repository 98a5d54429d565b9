"""llama.cpp through its Python package: our model in its format, quantised by it, timed by its own process.

llama-cpp-python has the library; llama.cpp's sources have the script that writes its format. Its source package
on PyPI holds them, in vendor/llama.cpp.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mamba_export.errors import MambaExportError
from mamba_export.models import MambaLM
from mamba_export.models.checkpoints import save

SCRIPT = "convert_hf_to_gguf.py"
FORMS = {"fp32": ("F32",), "fp16": ("F16", "BF16"), "int8": ("Q8_0",), "int4": ("Q4_0",)}
"""Its formats that keep a weight in as many bits as ours of that name."""

_FOLDER = re.compile(r"/(?:[^/\s'\"]+/)+")
_TOOLS = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Timed:
    """What it took.

    Args:
        prefill: milliseconds of a prompt, until the last step's logits are there.
        decode: milliseconds of a token after it.
        ubatch: tokens that it computes at once, of those that were tried the quickest.
        logits: of the prompt's last step (vocab).
    """

    prefill: float
    decode: float
    ubatch: int
    logits: np.ndarray


def check_sources(sources: Path) -> None:
    """Look for its script.

    Raises:
        MambaExportError: it is not there.
    """
    if not (sources / SCRIPT).is_file():
        raise MambaExportError(f"--llama-cpp {sources} holds no {SCRIPT}: name llama.cpp's sources")


def convert(model: MambaLM, sources: Path, folder: Path) -> Path:
    """Write ``model`` in its format, in fp32, by its own script; ``folder`` is to be empty.

    Raises:
        MambaExportError: the script failed; the message has its last line.
    """
    save(model, folder / "model")
    out = folder / "F32.gguf"
    _call(sources / SCRIPT, folder / "model", "--outfile", out, "--outtype", "f32")
    return out


def timed(file: Path, form: str, tokens: np.ndarray, threads: int) -> Timed:
    """Time a converted model after quantising it.

    Args:
        file: from ``convert``.
        form: one of ``FORMS``'.
        tokens: of the prompt (length).
        threads: for prefill and for decode.

    Raises:
        MambaExportError: the process failed; the message has its last line.
    """
    out = file.parent / form
    out.mkdir()
    np.save(out / "tokens.npy", tokens.astype(np.int32))
    _call("-m", "bench.peers.llama_cpp_process", file, form, out, threads)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return Timed(**result, logits=np.load(out / "logits.npy"))


def _call(*arguments: str | int | Path) -> None:
    """Python with these; a relative path is of here. An error names files without this machine's folders."""
    given = [str(one.resolve() if isinstance(one, Path) else one) for one in arguments]
    done = subprocess.run(
        [sys.executable, *given], cwd=_TOOLS, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
        said = _FOLDER.sub("", last.strip())
        raise MambaExportError(f"llama.cpp: exit code {done.returncode}: {said}")
