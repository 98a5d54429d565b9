"""Quantise and time a model in llama.cpp, in this process: an assertion of its ends the process.

python -m bench.peers.llama_cpp_process F32.gguf FORM FOLDER THREADS
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from bench.timing import STEPS, median_milliseconds

UBATCHES = (32, 64, 128, 256, 512)
"""Tokens computed at once that are tried; the quickest is timed. Its default is 512."""


def quantised(file: Path, form: str, folder: Path, threads: int) -> Path:
    """The file in a form, as its own llama-quantize writes it without options."""
    if form == "F32":
        return file
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form}")
    out = folder / f"{form}.gguf"
    if llama_cpp.llama_model_quantize(bytes(file), bytes(out), ctypes.byref(params)):
        raise RuntimeError(f"it does not quantise to {form}")
    return out


class Context:
    """A loaded model with one state, all of its settings its own defaults but for these.

    Args:
        model: from its loader.
        threads: for prompts and for tokens.
        ubatch: tokens computed at once.
        length: of the longest prompt.
    """

    def __init__(self, model: Any, threads: int, ubatch: int, length: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 1 << 16  # costs nothing: a recurrent state has one size
        params.n_batch = length
        params.n_ubatch = ubatch
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("no context")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def read(self, tokens: np.ndarray) -> None:
        """A prompt (length) from the beginning; returns when the last step's logits are there."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self.advance(tokens)

    def advance(self, tokens: np.ndarray) -> None:
        """Tokens (length) from where it is."""
        given = (llama_cpp.llama_token * len(tokens))(*tokens.tolist())
        code = llama_cpp.llama_decode(
            self._context, llama_cpp.llama_batch_get_one(given, len(tokens))
        )
        if code:
            raise RuntimeError(f"llama_decode returns {code}")
        llama_cpp.llama_synchronize(self._context)

    def logits(self) -> np.ndarray:
        """Of the last step (vocab)."""
        found = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (self._vocab,)).copy()

    def close(self) -> None:
        """Free its memory."""
        llama_cpp.llama_free(self._context)


def _seconds(context: Context, tokens: np.ndarray) -> float:
    context.read(tokens)
    start = time.perf_counter()
    context.read(tokens)
    return time.perf_counter() - start


def main() -> None:
    file, form, out, cores = sys.argv[1:]
    folder, threads = Path(out), int(cores)
    tokens = np.load(folder / "tokens.npy")
    length = len(tokens)
    llama_cpp.llama_backend_init()
    path = quantised(Path(file), form, folder, threads)
    model = llama_cpp.llama_model_load_from_file(
        bytes(path), llama_cpp.llama_model_default_params()
    )
    if not model:
        raise RuntimeError(f"it does not load {path.name}")
    took = {}
    for ubatch in [one for one in UBATCHES if one <= length] or [length]:
        context = Context(model, threads, ubatch, length)
        took[ubatch] = _seconds(context, tokens)
        context.close()
    best = min(took, key=took.__getitem__)
    context = Context(model, threads, best, length)
    prefill = median_milliseconds(lambda: context.read(tokens))
    logits = context.logits()

    def steps() -> None:
        for _ in range(STEPS):
            context.advance(tokens[-1:])

    decode = median_milliseconds(steps) / STEPS
    np.save(folder / "logits.npy", logits)
    result = {"prefill": prefill, "decode": decode, "ubatch": best}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
