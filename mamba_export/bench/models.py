"""Prefill and decode of a published shape with random weights, on a CPU, beside transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from mamba_export.bench.record import Row
from mamba_export.bench.timing import median_milliseconds
from mamba_export.export import export
from mamba_export.nn import MambaConfig, MambaLM
from mamba_export.runtime import OrtSession
from mamba_export.runtime.native_library import library_path

_STEPS = 16
"""Tokens of a decode measurement; the time is divided by it."""


def model_rows(size: str, length: int, progress: Callable[[str], None]) -> Iterator[Row]:
    """Time prefill of ``length`` tokens and a decoded token, batch 1, fp32.

    Args:
        size: a published size, such as "130m".
        length: tokens of the prompt.
        progress: called with what is being done.
    """
    config = MambaConfig.published(size)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
    prefill = f"{size} fp32, prefill of {length} tokens"
    decode = f"{size} fp32, a decoded token"
    with tempfile.TemporaryDirectory() as temporary:
        progress(f"exporting the {size} shape")
        torch.manual_seed(0)
        folder = export(MambaLM(config).eval(), Path(temporary) / "model")
        forms = [("function bodies", False)]
        if library_path() is not None:
            forms.append(("native kernels", True))
        for label, use_native in forms:
            progress(f"ONNX Runtime, {label}")
            name = f"ONNX Runtime, {label}"
            yield from _session_rows(folder, use_native, tokens, (prefill, decode), name)
    progress("transformers")
    yield from _transformers_rows(config, torch.from_numpy(tokens), prefill, decode)


def _session_rows(
    folder: Path, use_native: bool, tokens: np.ndarray, what: tuple[str, str], name: str
) -> Iterator[Row]:
    session = OrtSession(folder, providers=["CPUExecutionProvider"], native=use_native)
    yield Row(what[0], name, median_milliseconds(lambda: session.advance(tokens)))
    stepper = session.stepper(session.advance(tokens))
    token = tokens[:, -1]

    def steps() -> None:
        for _ in range(_STEPS):
            stepper.step(token)

    yield Row(what[1], name, median_milliseconds(steps) / _STEPS)


def _transformers_rows(
    config: MambaConfig, tokens: torch.Tensor, prefill: str, decode: str
) -> Iterator[Row]:
    try:
        import transformers
    except ImportError:
        for what in (prefill, decode):
            yield Row(what, "transformers", None, "transformers is not installed")
        return
    transformers.logging.set_verbosity_error()  # it warns that its fast path needs a GPU
    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layer,
            vocab_size=config.vocab_size,
        )
    ).eval()
    name = f"transformers {transformers.__version__}"
    with torch.no_grad():
        yield Row(prefill, name, median_milliseconds(lambda: model(tokens, use_cache=True)))
        output = model(tokens[:, :16], use_cache=True)

        def steps() -> None:
            for _ in range(_STEPS):
                model(tokens[:, -1:], cache_params=output.cache_params, use_cache=True)

        yield Row(decode, name, median_milliseconds(steps) / _STEPS)
