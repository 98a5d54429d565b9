"""Prefill and decode on a GPU through ONNX Runtime: published shapes with random weights."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import gpu, limits
from bench.cases import Cases, Progress, tokens, whole_folder
from bench.limits import Ceilings
from bench.measure import reason, try_row
from bench.peer_rows import mamba_ssm_rows, transformers_rows
from bench.published import config_of
from bench.rows import LIMIT, OURS, Row
from bench.timing import median_milliseconds
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.models import ModelConfig

_PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
_STEPS = 64  # decoded tokens that are timed
_WARM_UP_STEPS = 8
_WARM_UP_PROMPTS = 3  # a session captures what it reads for the third time
_PROMPT = 16  # tokens before a decode measurement
_SECONDS = 0.4  # of a prefill measurement, where one run is short
_MIN_RUNS = 2  # runs of it
_LONG = (1_000, 10_000, 100_000, 1_000_000)
_CHUNK = 8192  # tokens that a long text is read by


def model_rows(ceilings: Ceilings, cases: Cases, progress: Progress) -> Iterator[Row]:
    """Time every case; what does not fit in memory becomes a row that says so."""
    for size in cases.sizes:
        config = config_of(size)
        yield from _limit_rows(ceilings, config, size, cases)
        with tempfile.TemporaryDirectory() as temporary:
            folder = whole_folder(config, size, cases, Path(temporary), progress)
            yield from _our_rows(folder, config, size, cases, progress)
        gpu.release_memory()
        if cases.mamba_ssm:
            yield from mamba_ssm_rows(config, size, cases, progress)
            gpu.release_memory()
        if cases.transformers and size == cases.sizes[0]:
            yield from transformers_rows(config, size, cases, progress)
            gpu.release_memory()


def long_rows(ceilings: Ceilings, cases: Cases, progress: Progress) -> Iterator[Row]:
    """Time a decoded token after more and more text, of the first size, batch 1, with the memory in use."""
    size = cases.sizes[0]
    config = config_of(size)
    limit = limits.decode(ceilings, config, 1, cases.dtype, cases.weights, cases.state or "fp32")
    with tempfile.TemporaryDirectory() as temporary:
        folder = whole_folder(config, size, cases, Path(temporary), progress)
        session = OrtSession(folder, providers=_PROVIDERS)
        draw = np.random.default_rng(0)
        state, read = None, 0
        for count in _LONG:
            progress(f"{size}: reading to token {count}")
            while read < count:
                part = draw.integers(0, config.vocab_size, (1, min(_CHUNK, count - read)))
                state = session.advance(part, state)
                read += part.shape[1]
            assert state is not None
            milliseconds = _step_milliseconds(session, state, 1)
            sizes = {**cases.model_sizes(size), "batch": 1, "tokens_read": count}
            used = f"{gpu.used_bytes() / 1e9:.2f} GB in use"
            yield Row.of("long", sizes, OURS, milliseconds, used)
            yield Row.of("long", sizes, LIMIT, limit.milliseconds, limit.bound)


def _limit_rows(ceilings: Ceilings, config: ModelConfig, size: str, cases: Cases) -> Iterator[Row]:
    for sizes in cases.prefill_sizes(size):
        batch, length = sizes["batch"], sizes["length"]
        limit = limits.prefill(ceilings, config, batch, length, cases.dtype, cases.weights)
        yield Row.of("prefill", sizes, LIMIT, limit.milliseconds, limit.bound)
    for sizes in cases.decode_sizes(size):
        limit = limits.decode(
            ceilings, config, sizes["batch"], cases.dtype, cases.weights, cases.state or "fp32"
        )
        yield Row.of("decode", sizes, LIMIT, limit.milliseconds, limit.bound)


def _our_rows(
    folder: Path, config: ModelConfig, size: str, cases: Cases, progress: Progress
) -> Iterator[Row]:
    progress(f"{size}: loading")
    try:
        session = OrtSession(folder, providers=_PROVIDERS)
    except Exception as error:  # it must not cost the peers' measurements
        why = reason(error)
        progress(why)
        for sizes in cases.decode_sizes(size):
            yield Row.of("decode", sizes, OURS, None, why)
        for sizes in cases.prefill_sizes(size):
            yield Row.of("prefill", sizes, OURS, None, why)
        return
    if not session.native:
        progress(f"{size}: our library is not registered, so function bodies run")
    name = OURS if session.native else f"{OURS}, function bodies"
    for sizes in cases.decode_sizes(size):
        progress(f"{name}: decode {sizes}")
        prompts = tokens(config, sizes["batch"], _PROMPT)
        yield try_row("decode", sizes, name, lambda: _generate_milliseconds(session, prompts))  # noqa: B023
        yield try_row(
            "decode", sizes, f"{name}, step alone",
            lambda: _step_milliseconds(session, session.advance(prompts), len(prompts)),  # noqa: B023
        )  # fmt: skip
    for sizes in cases.prefill_sizes(size):
        progress(f"{name}: prefill {sizes}")
        prompts = tokens(config, sizes["batch"], sizes["length"])
        yield try_row("prefill", sizes, name, lambda: _prefill_milliseconds(session, prompts))  # noqa: B023


def _step_milliseconds(session: OrtSession, state: Any, batch: int) -> float:
    """Time of a step whose logits reach the host; tokens are given, none is chosen."""
    stepper = session.stepper(state)
    chosen = np.ones(batch, np.int64)
    for _ in range(_WARM_UP_STEPS):
        logits = stepper.step(chosen)
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    start = time.perf_counter()
    for _ in range(_STEPS):
        stepper.step(chosen)
    return 1e3 * (time.perf_counter() - start) / _STEPS


def _generate_milliseconds(session: OrtSession, prompts: np.ndarray) -> float:
    """Time of a token in ``generate``, greedy; the first step is the prompt's."""

    def once() -> float:
        made = session.generate(prompts.tolist(), max_new_tokens=_STEPS + 1, stop_at_end=False)
        return 1e3 * made.timings.decode_seconds / _STEPS

    return sorted(once() for _ in range(3))[1]


def _prefill_milliseconds(session: OrtSession, prompts: np.ndarray) -> float:
    for _ in range(_WARM_UP_PROMPTS):
        logits, _ = session.run(prompts)
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    return median_milliseconds(lambda: session.run(prompts), _SECONDS, min_runs=_MIN_RUNS)
