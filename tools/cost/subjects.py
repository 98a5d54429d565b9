"""What is measured: a model that reads texts and writes tokens, in ONNX Runtime or of mamba_ssm."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.timing import median_milliseconds
from cost.memory import available_bytes, release
from cost.transformer_session import Cache, TransformerSession
from mamba_export.backends.onnxruntime.providers import CPU_PROVIDER, CUDA_PROVIDER
from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.errors import MambaExportError
from mamba_export.generation.sampling import Sampler, Sampling
from mamba_export.generation.state import batch_sizes

_WARM_UP = 3  # a session on a GPU captures what it runs for the third time
_STEPS_TO_WARM_UP = _WARM_UP + 1
_BLOCKS = 9  # of steps that are timed, at most
_SECONDS = 0.4  # that what is short is repeated for
_PARTS = {"cpu": 512, "cuda": 8192}
"""Tokens that a long text is read by, so that memory does not grow with it."""
_WHOLE = 1 << 40
_COPIES = 4
"""Caches that are there at once where each step makes a new one: a text's, a step's old and new, a host's."""
_CAPTURED_UNTIL = 16384
"""Tokens of mamba_ssm's longest prompt of which a CUDA graph is made: beyond it Python's part is nothing."""
_MOST = max(_PARTS.values())  # tokens of a reading to warm up


class Subject(Protocol):
    """A model under measurement; each of its methods raises what failed."""

    def prefill_seconds(self, length: int) -> float:
        """Time until the last logits of a text are there, batch 1."""
        ...

    def decode_seconds(self, batch: int, length: int) -> float:
        """Time of a greedy token of each sequence after texts of some length."""
        ...


def _seconds(read: Callable[[], Any], warm_up: Callable[[], Any]) -> float:
    """Median of some readings where one is short, else the time of one."""
    for _ in range(_WARM_UP):
        warm_up()
    start = time.perf_counter()
    read()
    once = time.perf_counter() - start
    if once > _SECONDS:
        return once
    return 1e-3 * median_milliseconds(read, _SECONDS)


def _step_seconds(step: Callable[[], Any], steps: int, restart: Callable[[], Any]) -> float:
    """Median over blocks of steps; ``restart`` is called before each, so that none is later in its text."""
    restart()
    for _ in range(_STEPS_TO_WARM_UP):
        step()
    blocks: list[float] = []
    begun = time.perf_counter()
    while not blocks or (len(blocks) < _BLOCKS and time.perf_counter() - begun < _SECONDS):
        restart()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        blocks.append((time.perf_counter() - start) / steps)
    return statistics.median(blocks)


def _check_memory(needed: int) -> None:
    """Raise MambaExportError rather than have the system end a process that asks for more than there is."""
    if needed > 0.5 * available_bytes():
        raise MambaExportError(
            f"out of memory: its cache takes {needed / 1e9:.1f} GB, more than half of what is free"
        )


def _tokens(vocab_size: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (1, length))


class Exported:
    """An exported folder, native kernels where they are installed.

    Args:
        folder: of a language model with the last step's logits alone.
        device: "cpu" or "cuda".
        steps: tokens that are written to time one.
    """

    def __init__(self, folder: Path, device: str, steps: int) -> None:
        providers = [CUDA_PROVIDER, CPU_PROVIDER] if device == "cuda" else [CPU_PROVIDER]
        self._session = OrtSession(folder, providers=providers)
        self._vocab, self._steps = self._session.metadata.vocab_size, steps
        # A session that reads any length in bounded memory splits it better than we could.
        self._part = _WHOLE if self._session.splits_prompts else _PARTS[device]
        self._read: tuple[int, Any] = (0, None)  # length, and the state after it

    def prefill_seconds(self, length: int) -> float:
        tokens = _tokens(self._vocab, length)
        return _seconds(lambda: self._advance(tokens), lambda: self._advance(tokens[:, :_MOST]))

    def _advance(self, tokens: np.ndarray) -> None:
        logits, state = None, None
        for start in range(0, tokens.shape[1], self._part):
            logits, state = self._session.run(tokens[:, start : start + self._part], state)
        if not np.isfinite(np.asarray(logits, np.float32)).all():
            raise ValueError("the logits are not finite")
        self._read = tokens.shape[1], state

    def decode_seconds(self, batch: int, length: int) -> float:
        read, state = self._read
        if batch != 1 or read != length:
            state = self._state(batch, length)
        tokens = np.zeros(batch, np.int64)
        sampler = Sampler(Sampling(temperature=0), [np.zeros(1, np.int64)] * batch, self._vocab)
        chooser = self._session.chooser(state, sampler, tokens)
        if chooser is not None:
            return _step_seconds(lambda: chooser.next(goes_on=True), self._steps, lambda: None)
        steppers: list[Any] = []

        def restart() -> None:
            steppers[:] = [self._session.stepper(state)]

        def step() -> None:
            tokens[:] = steppers[0].step(tokens).argmax(-1)

        return _step_seconds(step, self._steps, restart)

    def _state(self, batch: int, length: int) -> Any:
        """One that costs as much as that after texts of some length: only what grows knows how much it read."""
        metadata = self._session.metadata
        if not metadata.grows:
            return self._session.initial_state(batch)
        growing = (one.past.shape[one.grows] for one in metadata.states if one.grows)
        sizes = batch_sizes(metadata, batch) | {str(name): length for name in growing}
        shapes = [one.past.resolve(sizes) for one in metadata.states]
        _check_memory(_COPIES * 4 * sum(map(math.prod, shapes)))
        return self._session.state_from_numpy([np.full(one, 0.01, np.float32) for one in shapes])


class Transformer:
    """The graph of ``cost.transformer``.

    Args:
        file: of the graph.
        device: "cpu" or "cuda".
        steps: tokens that are written to time one.
        captured: steps are CUDA graphs.
    """

    def __init__(self, file: Path, device: str, steps: int, *, captured: bool = False) -> None:
        self._session = TransformerSession(file, device, captured=captured)
        self._device, self._part, self._steps = device, _PARTS[device], steps
        self._cache: Cache | None = None

    def prefill_seconds(self, length: int) -> float:
        tokens = _tokens(self._session.vocab_size, length)
        cache = self._cache_of(1, length)

        def read(part: np.ndarray) -> None:
            cache.assume(0)
            cache.read(part, self._part)
            logits = cache.logits()
            if not np.isfinite(logits.astype(np.float32)).all():
                raise ValueError("the logits are not finite")

        return _seconds(lambda: read(tokens), lambda: read(tokens[:, :_MOST]))

    def decode_seconds(self, batch: int, length: int) -> float:
        cache = self._cache_of(batch, length)
        return _step_seconds(cache.step, self._steps, lambda: cache.assume(length))

    def _cache_of(self, batch: int, length: int) -> Cache:
        """With room for the tokens that are written as well; the one that is there, or a new one instead."""
        room = length + max(_STEPS_TO_WARM_UP, self._steps)
        if self._cache is None or (self._cache.batch, self._cache.room) != (batch, room):
            self._cache = None
            release(self._device)
            if self._device == "cpu":
                _check_memory(self._session.cache_bytes(batch, room))
            self._cache = Cache(self._session, batch, room)
        return self._cache


class MambaSsm:
    """mamba_ssm's model: prompts as a CUDA graph or as one calls it, whichever is quicker; its captured step.

    No token is chosen in that step.

    Args:
        config: of the model.
        dtype: of its weights.
        steps: tokens that are written to time one.
    """

    def __init__(self, config: Any, dtype: str, steps: int) -> None:
        from bench import peers
        from bench.peers.models import MambaSsmModel

        if peers.mamba_ssm_absent():
            raise MambaExportError(peers.mamba_ssm_absent())
        self._model = MambaSsmModel(config, dtype)
        self._vocab, self._steps = config.vocab_size, steps

    def prefill_seconds(self, length: int) -> float:
        tokens = _tokens(self._vocab, length)

        replayed = math.inf
        if length <= _CAPTURED_UNTIL:
            replay = self._model.captured_prefill(tokens)
            replayed = _seconds(replay, replay)
            del replay
            release("cuda")  # the memory of one form is measured: of the one that makes states

        def read() -> None:
            self._model.prefill(tokens)

        return min(replayed, _seconds(read, read))

    def decode_seconds(self, batch: int, length: int) -> float:
        self._model.capture_step(batch, length)
        return 1e-3 * self._model.graph_milliseconds(batch, self._steps, length)
