"""Prefill and decode of a published shape with random weights, on a CPU, beside others' at their best."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cpu_peers import difference, llama_cpp_rows, transformers_rows
from bench.published import config_of
from bench.rows import Row
from bench.timing import STEPS, median_milliseconds
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.export import export
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import MambaLM
from mamba_export.operators.dispatch import forced
from mamba_export.verify.bounds import relative_error

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"dtype": "fp16"},
    "int8": {"weights": "int8"},
    "int4": {"weights": "int4"},
}
"""What the weights are kept in, and what ``export`` is told for it."""


def model_rows(
    size: str,
    length: int,
    progress: Callable[[str], None],
    kinds: Collection[str] = ("prefill", "decode"),
    llama_cpp: Path | None = None,
) -> Iterator[Row]:
    """Time prefill of ``length`` tokens until the last logits are there, and a decoded token, batch 1.

    Args:
        size: a published size, such as "130m" or "mamba2-130m".
        length: tokens of the prompt.
        progress: called with what is being done.
        kinds: which of "prefill" and "decode".
        llama_cpp: folder of llama.cpp's sources; None to leave it out.
    """
    config = config_of(size)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))

    def names(precision: str) -> dict[str, str]:
        found = {
            "prefill": f"{size} {precision}, prefill of {length} tokens",
            "decode": f"{size} {precision}, a decoded token",
        }
        return {kind: name for kind, name in found.items() if kind in kinds}

    torch.manual_seed(0)
    model = MambaLM(config).eval()
    progress("the logits in PyTorch")
    with torch.no_grad(), forced("reference"):
        truth = model(torch.from_numpy(tokens), last_logits_only=True)[0][0, -1].numpy()
    for precision, told in PRECISIONS.items():
        with tempfile.TemporaryDirectory() as temporary:
            progress(f"exporting the {size} shape, {precision}")
            out = Path(temporary) / "model"
            folder = export(model, out, last_logits_only=True, **told)
            forms = [("function bodies", False)]
            if CUSTOM_OPS.path() is not None:
                forms.append(("native kernels", True))
            for label, use_native in forms:
                name = f"ONNX Runtime, {label}"
                progress(name)
                yield from _session_rows(folder, use_native, tokens, names(precision), name, truth)
    yield from llama_cpp_rows(model, tokens, truth, names, llama_cpp, progress)
    progress("transformers")
    yield from transformers_rows(config, torch.from_numpy(tokens), names("fp32"))


def _session_rows(
    folder: Path,
    use_native: bool,
    tokens: np.ndarray,
    what: dict[str, str],
    name: str,
    truth: np.ndarray,
) -> Iterator[Row]:
    session = OrtSession(folder, providers=["CPUExecutionProvider"], native=use_native)
    logits, state = session.run(tokens)
    note = difference(relative_error(logits[0, -1], truth))
    if "prefill" in what:
        yield Row(what["prefill"], name, median_milliseconds(lambda: session.run(tokens)), note)
    if "decode" in what:
        stepper = session.stepper(state)
        token = tokens[:, -1]

        def steps() -> None:
            for _ in range(STEPS):
                stepper.step(token)

        yield Row(what["decode"], name, median_milliseconds(steps) / STEPS, note)
