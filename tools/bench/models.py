"""Prefill and decode of a published shape with random weights, on a CPU, beside transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import torch

from bench import peers
from bench.peers.models import transformers_model
from bench.published import config_of
from bench.rows import Row
from bench.timing import median_milliseconds
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.export import export
from mamba_export.libraries import CUSTOM_OPS
from mamba_export.models import MambaLM, ModelConfig

_STEPS = 16
"""Tokens of a decode measurement; the time is divided by it."""


def model_rows(
    size: str,
    length: int,
    progress: Callable[[str], None],
    kinds: Collection[str] = ("prefill", "decode"),
) -> Iterator[Row]:
    """Time prefill of ``length`` tokens and a decoded token, batch 1, fp32.

    Args:
        size: a published size, such as "130m" or "mamba2-130m".
        length: tokens of the prompt.
        progress: called with what is being done.
        kinds: which of "prefill" and "decode".
    """
    config = config_of(size)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
    names = {
        "prefill": f"{size} fp32, prefill of {length} tokens",
        "decode": f"{size} fp32, a decoded token",
    }
    what = {kind: name for kind, name in names.items() if kind in kinds}
    with tempfile.TemporaryDirectory() as temporary:
        progress(f"exporting the {size} shape")
        torch.manual_seed(0)
        folder = export(MambaLM(config).eval(), Path(temporary) / "model")
        forms = [("function bodies", False)]
        if CUSTOM_OPS.path() is not None:
            forms.append(("native kernels", True))
        for label, use_native in forms:
            progress(f"ONNX Runtime, {label}")
            name = f"ONNX Runtime, {label}"
            yield from _session_rows(folder, use_native, tokens, what, name)
    progress("transformers")
    yield from _transformers_rows(config, torch.from_numpy(tokens), what)


def _session_rows(
    folder: Path, use_native: bool, tokens: np.ndarray, what: dict[str, str], name: str
) -> Iterator[Row]:
    session = OrtSession(folder, providers=["CPUExecutionProvider"], native=use_native)
    if "prefill" in what:
        yield Row(what["prefill"], name, median_milliseconds(lambda: session.advance(tokens)))
    if "decode" in what:
        stepper = session.stepper(session.advance(tokens))
        token = tokens[:, -1]

        def steps() -> None:
            for _ in range(_STEPS):
                stepper.step(token)

        yield Row(what["decode"], name, median_milliseconds(steps) / _STEPS)


def _transformers_rows(
    config: ModelConfig, tokens: torch.Tensor, what: dict[str, str]
) -> Iterator[Row]:
    absent = peers.transformers_absent()
    if absent:
        for one in what.values():
            yield Row(one, peers.TRANSFORMERS, None, absent)
        return
    import transformers

    model = transformers_model(config, "fp32", "cpu")
    name = f"transformers {transformers.__version__}"
    with torch.no_grad():
        if "prefill" in what:
            took = median_milliseconds(lambda: model(tokens, use_cache=True))
            yield Row(what["prefill"], name, took)
        if "decode" in what:
            output = model(tokens[:, :16], use_cache=True)

            def steps() -> None:
                for _ in range(_STEPS):
                    model(tokens[:, -1:], cache_params=output.cache_params, use_cache=True)

            yield Row(what["decode"], name, median_milliseconds(steps) / _STEPS)
