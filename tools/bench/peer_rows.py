"""Prefill and decode of others' models on a GPU, each in every form that it offers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bench import peers
from bench.cases import Cases, Progress, tokens
from bench.measure import reason, try_row
from bench.peers.models import MambaSsmModel, transformers_model
from bench.rows import Row
from bench.timing import median_milliseconds
from mamba_export.models import ModelConfig

MAMBA_SSM_STEP = f"{peers.MAMBA_SSM}, step alone"
MAMBA_SSM_GRAPH = f"{peers.MAMBA_SSM}, CUDA graph"
_STEPS = 64  # decoded tokens that are timed
_TRANSFORMERS_STEPS = 8
_PROMPT = 16  # tokens before a decode measurement
_SECONDS = 0.4  # of a prefill measurement, where one run is short
_MIN_RUNS = 2  # runs of it
_RELATED = 0.5
"""Relative error between its two ways to prefill, which round differently over 64 layers; that of unrelated
logits is 1.4."""


def mamba_ssm_rows(
    config: ModelConfig, size: str, cases: Cases, progress: Progress
) -> Iterator[Row]:
    """Its step in ``generate`` and alone; its prefill as one calls it and in a CUDA graph."""
    name = peers.MAMBA_SSM
    absent = peers.mamba_ssm_absent()
    if not absent:
        progress(f"{size}: making mamba_ssm's model")
        try:
            model = MambaSsmModel(config, cases.dtype)
        except Exception as error:  # it needs parts of other packages, of certain versions
            absent = reason(error)
    if absent:
        for sizes in cases.prefill_sizes(size):
            yield Row.of("prefill", sizes, name, None, absent)
        for sizes in cases.decode_sizes(size):
            yield Row.of("decode", sizes, name, None, absent)
        return
    for sizes in cases.decode_sizes(size):
        progress(f"{name}: decode {sizes}")
        batch = sizes["batch"]
        yield try_row("decode", sizes, name, lambda: model.decode_milliseconds(batch, _STEPS))  # noqa: B023
        yield try_row(
            "decode", sizes, MAMBA_SSM_STEP, lambda: model.graph_milliseconds(batch, _STEPS)  # noqa: B023
        )  # fmt: skip
    for sizes in cases.prefill_sizes(size):
        progress(f"{name}: prefill {sizes}")
        prompts = tokens(config, sizes["batch"], sizes["length"])
        yield try_row("prefill", sizes, MAMBA_SSM_GRAPH, lambda: _captured(model, prompts))  # noqa: B023
        yield try_row("prefill", sizes, name, lambda: _eager(model, prompts))  # noqa: B023


def _eager(model: MambaSsmModel, prompts: np.ndarray) -> float:
    return median_milliseconds(lambda: model.prefill(prompts), _SECONDS, min_runs=_MIN_RUNS)


def _captured(model: MambaSsmModel, prompts: np.ndarray) -> float:
    """Time of a replay, once its logits are those of the plain call."""
    expected = model.prefill(prompts).double()
    replay = model.captured_prefill(prompts)
    error = float((replay().double() - expected).norm() / expected.norm())
    if not error < _RELATED:
        raise ValueError(f"the captured logits differ by {error:.1e}")
    return median_milliseconds(replay, _SECONDS, min_runs=_MIN_RUNS)


def transformers_rows(
    config: ModelConfig, size: str, cases: Cases, progress: Progress
) -> Iterator[Row]:
    """Its prefill of the shortest prompt and its step, batch 1."""
    absent = peers.transformers_absent()
    length = min(cases.lengths)
    prefill = {**cases.model_sizes(size), "batch": 1, "length": length}
    decode = {**cases.model_sizes(size), "batch": 1}
    if absent:
        if cases.prefill:
            yield Row.of("prefill", prefill, peers.TRANSFORMERS, None, absent)
        if cases.decode:
            yield Row.of("decode", decode, peers.TRANSFORMERS, None, absent)
        return
    progress(f"{size}: transformers")
    model = transformers_model(config, cases.dtype, "cuda")
    ids = torch.from_numpy(tokens(config, 1, length)).cuda()

    @torch.inference_mode()
    def read() -> None:
        model(ids, use_cache=True).logits[:, -1].cpu()

    @torch.inference_mode()
    def token_milliseconds() -> float:
        states = model(ids[:, :_PROMPT], use_cache=True).cache_params

        def steps() -> None:
            token = ids[:, :1]
            for _ in range(_TRANSFORMERS_STEPS):
                output = model(token, cache_params=states, use_cache=True)
                token = output.logits[:, -1:].argmax(-1)
            torch.cuda.synchronize()

        return median_milliseconds(steps, _SECONDS, min_runs=_MIN_RUNS) / _TRANSFORMERS_STEPS

    if cases.prefill:
        yield try_row(
            "prefill", prefill, peers.TRANSFORMERS,
            lambda: median_milliseconds(read, _SECONDS, min_runs=_MIN_RUNS),
        )  # fmt: skip
    if cases.decode:
        yield try_row("decode", decode, peers.TRANSFORMERS, token_milliseconds)
