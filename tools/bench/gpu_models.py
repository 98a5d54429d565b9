"""Prefill and decode on a GPU: published shapes with random weights, through ONNX Runtime and mamba_ssm."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import gpu, limits, rivals
from bench.limits import Ceilings
from bench.random_folder import fill_weights, write_graph
from bench.record import LIMIT, OURS, Row
from bench.timing import median_milliseconds
from mamba_export import contract
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.errors import MambaExportError, first_line, named_first_line
from mamba_export.models import MambaConfig

SIZES = ("130m", "370m", "1.4b", "2.8b")
LENGTHS = (512, 2048, 8192)
BATCHES = (1, 8, 64)
OURS_STEP = f"{OURS}, step alone"
MAMBA_SSM_GRAPH = f"{rivals.MAMBA_SSM}, graph alone"
_PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
_STEPS = 64  # decoded tokens that are timed
_WARM_UP_STEPS = 8
_PROMPT = 16  # tokens before a decode measurement
_SECONDS = 0.4  # of a prefill measurement, where one run is short
_LEAST = 2  # runs of it
_LONG = (1_000, 10_000, 100_000, 1_000_000)
_CHUNK = 8192  # tokens that a long text is read by

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Cases:
    """What to time.

    Args:
        sizes: published sizes.
        lengths: tokens of a prompt, for prefill.
        batches: sequences at once.
        dtype: of the weights.
        most_tokens: prompts of more tokens, over the whole batch, are left out.
        prefill, decode: whether to time each.
        graphs: folder with a subfolder a size that ``prepare_graphs`` wrote; None to make them here.
        mamba_ssm, transformers: whether to time these where they are installed. transformers loops over
            the steps in Python without further packages, so it is timed for the first size, batch 1 and
            the shortest prompt alone.
    """

    sizes: Sequence[str] = SIZES
    lengths: Sequence[int] = LENGTHS
    batches: Sequence[int] = BATCHES
    dtype: str = "fp16"
    most_tokens: int = 1 << 20
    prefill: bool = True
    decode: bool = True
    graphs: Path | None = None
    mamba_ssm: bool = True
    transformers: bool = True


def prepare_graphs(folder: Path, sizes: Sequence[str], dtype: str, progress: Progress) -> None:
    """Write the graph of each size under ``folder``, without weights: the slow part, and a small one."""
    for size in sizes:
        progress(f"tracing the {size} shape")
        write_graph(MambaConfig.published(size), folder / size, dtype=dtype, name=size)


def model_rows(ceilings: Ceilings, cases: Cases, progress: Progress) -> Iterator[Row]:
    """Time every case; what does not fit in memory becomes a row that says so."""
    for size in cases.sizes:
        config = MambaConfig.published(size)
        yield from _limit_rows(ceilings, config, size, cases)
        with tempfile.TemporaryDirectory() as temporary:
            folder = _whole_folder(config, size, cases, Path(temporary), progress)
            yield from _our_rows(folder, config, size, cases, progress)
        gpu.release_memory()
        if cases.mamba_ssm:
            yield from _mamba_ssm_rows(config, size, cases, progress)
            gpu.release_memory()
        if cases.transformers and size == cases.sizes[0]:
            yield from _transformers_rows(config, size, cases, progress)
            gpu.release_memory()


def long_rows(ceilings: Ceilings, cases: Cases, progress: Progress) -> Iterator[Row]:
    """Time a decoded token after more and more text, of the first size, batch 1, with the memory in use."""
    size = cases.sizes[0]
    config = MambaConfig.published(size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = _whole_folder(config, size, cases, Path(temporary), progress)
        session = OrtSession(folder, providers=_PROVIDERS)
        draw = np.random.default_rng(0)
        state, read = None, 0
        for tokens in _LONG:
            progress(f"{size}: reading to token {tokens}")
            while read < tokens:
                part = draw.integers(0, config.vocab_size, (1, min(_CHUNK, tokens - read)))
                state = session.advance(part, state)
                read += part.shape[1]
            assert state is not None
            milliseconds = _step_milliseconds(session, state, 1)
            sizes = _sizes(size, cases.dtype, batch=1, tokens_read=tokens)
            used = f"{gpu.used_bytes() / 1e9:.2f} GB in use"
            yield Row.of("long", sizes, OURS, milliseconds, used)
    limit = limits.decode(ceilings, config, 1, cases.dtype)
    for tokens in _LONG:
        sizes = _sizes(size, cases.dtype, batch=1, tokens_read=tokens)
        yield Row.of("long", sizes, LIMIT, limit.milliseconds, limit.bound)


def _sizes(size: str, dtype: str, **more: int) -> dict[str, Any]:
    return {"model": size, "dtype": dtype, **more}


def _prefill_cases(size: str, cases: Cases) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for batch in cases.batches if cases.prefill else ():
        for length in cases.lengths:
            if batch * length > cases.most_tokens:
                continue
            yield batch, length, _sizes(size, cases.dtype, batch=batch, length=length)


def _decode_cases(size: str, cases: Cases) -> Iterator[tuple[int, dict[str, Any]]]:
    for batch in cases.batches if cases.decode else ():
        yield batch, _sizes(size, cases.dtype, batch=batch)


def _tokens(config: MambaConfig, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, (batch, length))


def _whole_folder(
    config: MambaConfig, size: str, cases: Cases, temporary: Path, progress: Progress
) -> Path:
    """A folder that can be run: the prepared graph or a new one, and weights."""
    folder = temporary / size
    if cases.graphs is None:
        progress(f"tracing the {size} shape")
        write_graph(config, folder, dtype=cases.dtype, name=size)
    else:
        prepared = cases.graphs / size
        if not (prepared / contract.MODEL_FILE).is_file():
            raise MambaExportError(f"{prepared} holds no graph: make it with --prepare")
        folder.mkdir()
        for file in (contract.MODEL_FILE, contract.METADATA_FILE):
            (folder / file).write_bytes((prepared / file).read_bytes())
    progress(f"writing weights of the {size} shape")
    fill_weights(folder)
    return folder


def _limit_rows(ceilings: Ceilings, config: MambaConfig, size: str, cases: Cases) -> Iterator[Row]:
    for batch, length, sizes in _prefill_cases(size, cases):
        limit = limits.prefill(ceilings, config, batch, length, cases.dtype)
        yield Row.of("prefill", sizes, LIMIT, limit.milliseconds, limit.bound)
    for batch, sizes in _decode_cases(size, cases):
        limit = limits.decode(ceilings, config, batch, cases.dtype)
        yield Row.of("decode", sizes, LIMIT, limit.milliseconds, limit.bound)


def _try(
    kind: str, sizes: dict[str, Any], implementation: str, measure: Callable[[], float]
) -> Row:
    """A row with the time, or the reason why there is none."""
    try:
        return Row.of(kind, sizes, implementation, measure())
    except (
        Exception
    ) as error:  # mostly memory; whatever it is, it must not cost the other measurements
        gpu.release_memory()
        return Row.of(kind, sizes, implementation, None, _reason(error))


def _reason(error: Exception) -> str:
    return first_line(error) if isinstance(error, MambaExportError) else named_first_line(error)


def _step_milliseconds(session: OrtSession, state: Any, batch: int) -> float:
    """Time of a step whose logits reach the host; tokens are given, none is chosen."""
    stepper = session.stepper(state)
    tokens = np.ones(batch, np.int64)
    for _ in range(_WARM_UP_STEPS):
        logits = stepper.step(tokens)
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    start = time.perf_counter()
    for _ in range(_STEPS):
        stepper.step(tokens)
    return 1e3 * (time.perf_counter() - start) / _STEPS


def _generate_milliseconds(session: OrtSession, prompts: list[list[int]]) -> float:
    """Time of a token in ``generate``, greedy; the first step is the prompt's."""

    def once() -> float:
        made = session.generate(prompts, max_new_tokens=_STEPS + 1, stop_at_end=False)
        return 1e3 * made.timings.decode_seconds / _STEPS

    return sorted(once() for _ in range(3))[1]


def _our_rows(
    folder: Path, config: MambaConfig, size: str, cases: Cases, progress: Progress
) -> Iterator[Row]:
    progress(f"{size}: loading")
    session = OrtSession(folder, providers=_PROVIDERS)
    if not session.native:
        progress(f"{size}: our library is not registered, so function bodies run")
    name = OURS if session.native else f"{OURS}, function bodies"
    for batch, sizes in _decode_cases(size, cases):
        progress(f"{name}: decode {sizes}")
        state = session.advance(_tokens(config, batch, _PROMPT))
        prompts = _tokens(config, batch, _PROMPT).tolist()
        yield _try("decode", sizes, name, lambda: _generate_milliseconds(session, prompts))  # noqa: B023
        yield _try(
            "decode",
            sizes,
            f"{name}, step alone",
            lambda: _step_milliseconds(session, state, batch),  # noqa: B023
        )
    for batch, length, sizes in _prefill_cases(size, cases):
        progress(f"{name}: prefill {sizes}")
        tokens = _tokens(config, batch, length)
        yield _try("prefill", sizes, name, lambda: _prefill_milliseconds(session, tokens))  # noqa: B023


def _prefill_milliseconds(session: OrtSession, tokens: np.ndarray) -> float:
    logits, _ = session.run(tokens)
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    return median_milliseconds(lambda: session.run(tokens), _SECONDS, least=_LEAST)


def _mamba_ssm_rows(
    config: MambaConfig, size: str, cases: Cases, progress: Progress
) -> Iterator[Row]:
    name = rivals.MAMBA_SSM
    absent = rivals.mamba_ssm_absent()
    if not absent:
        progress(f"{size}: making mamba_ssm's model")
        try:
            model = rivals.MambaSsmModel(config, cases.dtype)
        except Exception as error:  # it needs parts of other packages, of certain versions
            absent = _reason(error)
    if absent:
        for _, _, sizes in _prefill_cases(size, cases):
            yield Row.of("prefill", sizes, name, None, absent)
        for _, sizes in _decode_cases(size, cases):
            yield Row.of("decode", sizes, name, None, absent)
        return
    for batch, sizes in _decode_cases(size, cases):
        progress(f"{name}: decode {sizes}")
        yield _try("decode", sizes, name, lambda: model.decode_milliseconds(batch, _STEPS))  # noqa: B023
        yield _try(
            "decode",
            sizes,
            MAMBA_SSM_GRAPH,
            lambda: model.graph_milliseconds(batch, _STEPS),  # noqa: B023
        )
    for batch, length, sizes in _prefill_cases(size, cases):
        progress(f"{name}: prefill {sizes}")
        tokens = _tokens(config, batch, length)
        yield _try(
            "prefill",
            sizes,
            name,
            lambda: median_milliseconds(lambda: model.prefill(tokens), _SECONDS, least=_LEAST),  # noqa: B023
        )


def _transformers_rows(
    config: MambaConfig, size: str, cases: Cases, progress: Progress
) -> Iterator[Row]:
    absent = rivals.transformers_absent()
    length = min(cases.lengths)
    prefill = _sizes(size, cases.dtype, batch=1, length=length)
    decode = _sizes(size, cases.dtype, batch=1)
    if absent:
        if cases.prefill:
            yield Row.of("prefill", prefill, rivals.TRANSFORMERS, None, absent)
        if cases.decode:
            yield Row.of("decode", decode, rivals.TRANSFORMERS, None, absent)
        return
    progress(f"{size}: transformers")
    model = rivals.transformers_model(config, cases.dtype, "cuda")
    ids = torch.from_numpy(_tokens(config, 1, length)).cuda()

    @torch.inference_mode()
    def read() -> None:
        model(ids, use_cache=True).logits[:, -1].cpu()

    @torch.inference_mode()
    def token_milliseconds() -> float:
        states = model(ids[:, :_PROMPT], use_cache=True).cache_params

        def steps() -> None:
            token = ids[:, :1]
            for _ in range(_WARM_UP_STEPS):
                output = model(token, cache_params=states, use_cache=True)
                token = output.logits[:, -1:].argmax(-1)
            torch.cuda.synchronize()

        return median_milliseconds(steps, _SECONDS, least=_LEAST) / _WARM_UP_STEPS

    if cases.prefill:
        yield _try(
            "prefill",
            prefill,
            rivals.TRANSFORMERS,
            lambda: median_milliseconds(read, _SECONDS, least=_LEAST),
        )
    if cases.decode:
        yield _try("decode", decode, rivals.TRANSFORMERS, token_milliseconds)
