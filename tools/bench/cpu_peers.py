"""Prefill and decode of others' models on a CPU: transformers', and llama.cpp's in each of its formats."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from bench import peers
from bench.measure import reason
from bench.peers import llama_cpp
from bench.peers.models import transformers_model
from bench.provenance import cores
from bench.rows import Row
from bench.timing import STEPS, median_milliseconds
from mamba_export.errors import MambaExportError
from mamba_export.models import MambaLM, ModelConfig
from mamba_export.verify.bounds import relative_error

_RELATED = 0.05
"""Relative error of its logits in fp32 against the same weights in PyTorch; that of unrelated ones is 1.4."""

Names = Callable[[str], dict[str, str]]
"""What is timed, by kind, of a precision."""


def difference(error: float) -> str:
    """A row's note of how far its logits are from PyTorch's in fp32."""
    return f"logits differ by {error:.0e}"


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """PyTorch on every core, whatever the environment says, as the others run."""
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def transformers_rows(
    config: ModelConfig, tokens: torch.Tensor, what: dict[str, str]
) -> Iterator[Row]:
    """Its model with random weights, in fp32."""
    absent = peers.transformers_absent()
    if absent:
        for one in what.values():
            yield Row(one, peers.TRANSFORMERS, None, absent)
        return
    import transformers

    model = transformers_model(config, "fp32", "cpu")
    name = f"{peers.TRANSFORMERS} {transformers.__version__}"
    with torch.no_grad(), _all_cores():
        if "prefill" in what:
            took = median_milliseconds(lambda: model(tokens, use_cache=True, logits_to_keep=1))
            yield Row(what["prefill"], name, took)
        if "decode" in what:
            output = model(tokens[:, :16], use_cache=True)

            def steps() -> None:
                for _ in range(STEPS):
                    model(tokens[:, -1:], cache_params=output.cache_params, use_cache=True)

            yield Row(what["decode"], name, median_milliseconds(steps) / STEPS)


def llama_cpp_rows(
    model: MambaLM,
    tokens: np.ndarray,
    truth: np.ndarray,
    names: Names,
    sources: Path | None,
    progress: Callable[[str], None],
) -> Iterator[Row]:
    """The same weights in llama.cpp's formats; what it cannot convert or run is a row that says so.

    Args:
        model: in fp32.
        tokens: (1, length).
        truth: the logits of the last of them in PyTorch (vocab).
        names: what is timed, by kind, of a precision.
        sources: llama.cpp's; None to leave it out.
        progress: called with what is being done.
    """
    absent = peers.llama_cpp_absent()
    if not absent and sources is None:
        absent = f"not asked for: --llama-cpp FOLDER with its {llama_cpp.SCRIPT}"
    if absent or sources is None:
        for one in names("fp32").values():
            yield Row(one, peers.LLAMA_CPP, None, absent)
        return
    with tempfile.TemporaryDirectory() as temporary:
        progress("llama.cpp: converting")
        try:
            file = llama_cpp.convert(model, sources, Path(temporary))
        except MambaExportError as error:
            for one in names("fp32").values():
                yield Row(one, peers.LLAMA_CPP, None, reason(error))
            return
        for precision, forms in llama_cpp.FORMS.items():
            for form in forms:
                progress(f"llama.cpp: {form}")
                yield from _form_rows(file, form, tokens[0], names(precision), truth)


def _form_rows(
    file: Path, form: str, tokens: np.ndarray, what: dict[str, str], truth: np.ndarray
) -> Iterator[Row]:
    name = f"{peers.LLAMA_CPP}, {form}"
    try:
        timed = llama_cpp.timed(file, form, tokens, cores())
        error = relative_error(timed.logits, truth)
        if form == "F32" and not error < _RELATED:
            raise ValueError(f"its logits differ by {error:.1e}")
    except Exception as failure:
        for one in what.values():
            yield Row(one, name, None, reason(failure))
        return
    note = f"{cores()} threads, ubatch {timed.ubatch}, {difference(error)}"
    for kind, one in what.items():
        yield Row(one, name, getattr(timed, kind), note)
