"""Drives the graph of ``cost.transformer``: prompts in parts, then tokens, with one cache in place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from cost.buffers import Buffer
from mamba_export.backends.onnxruntime.providers import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    ort,  # from where its telemetry is switched off before the import
    with_defaults,
)

PAST, PRESENT = "past.", "present."
"""What names of the cache's inputs and outputs start with; the rest is the same."""
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class TransformerSession:
    """The model, loaded.

    Args:
        file: from ``write_transformer``.
        device: "cpu" or "cuda".
        captured: a step is a CUDA graph, which ONNX Runtime captures.
    """

    def __init__(
        self,
        file: Path,
        device: str,
        *,
        captured: bool = False,
    ) -> None:
        self.device, self.captured = device, captured
        providers: list[Any] = [CPU_PROVIDER]
        if device == "cuda":
            # The arena takes what is asked for, not the next power of two: its size is measured.
            options = {"arena_extend_strategy": "kSameAsRequested"}
            options |= {"enable_cuda_graph": "1"} if captured else {}
            providers = [(CUDA_PROVIDER, options), CPU_PROVIDER]
            with_defaults([CUDA_PROVIDER])
        self._session = ort.InferenceSession(file, providers=providers)
        states = [one for one in self._session.get_inputs() if one.name.startswith(PAST)]
        self.states = [one.name.removeprefix(PAST) for one in states]
        _, self._heads, _, self._head_dim = states[0].shape
        self.dtype = np.dtype(_DTYPES[states[0].type])
        self.vocab_size = int(self._session.get_outputs()[1].shape[1])

    def cache_shape(self, batch: int, room: int) -> tuple[int, ...]:
        """Of a state with room for so many tokens of each of ``batch`` sequences."""
        return batch, self._heads, room, self._head_dim

    def cache_bytes(self, batch: int, room: int) -> int:
        """Bytes of all states."""
        count = len(self.states) * math.prod(self.cache_shape(batch, room))
        return count * self.dtype.itemsize

    def run(self, binding: ort.IOBinding, graph: int = -1) -> None:
        """Run what is bound; a graph's number from 0 on captures and replays it."""
        options = ort.RunOptions()
        if self.captured:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        self._session.run_with_iobinding(binding, options)

    def binding(self) -> ort.IOBinding:
        """A new binding."""
        return self._session.io_binding()


class Cache:
    """Keys and values of a batch of sequences, and what they are read and written by.

    Args:
        session: of the model.
        batch: sequences.
        room: tokens that each may have.
    """

    _graphs = 0

    def __init__(self, session: TransformerSession, batch: int, room: int) -> None:
        device, floats = session.device, session.dtype
        self._session, self.batch, self.room = session, batch, room
        self.length = 0
        shape = session.cache_shape(batch, room)
        integer, index = np.dtype(np.int32), np.dtype(np.int64)
        self._states = {name: Buffer(shape, floats, device) for name in session.states}
        self._lengths = Buffer((batch,), integer, device)
        self._total = Buffer((), integer, "cpu")
        self._next = Buffer((batch, 1), index, device)
        self._logits = Buffer((batch, session.vocab_size), floats, device)
        self._captured: tuple[ort.IOBinding, int] | None = None

    def read(self, tokens: np.ndarray, part: int) -> None:
        """Read tokens (batch, length) in parts of ``part``, after what was read before."""
        for start in range(0, tokens.shape[1], part):
            chunk = tokens[:, start : start + part]
            ids = Buffer(chunk.shape, chunk.dtype, self._session.device)
            ids.put(chunk)
            self._set_length(self.length + chunk.shape[1])
            self._session.run(self._bind(ids))

    def logits(self) -> np.ndarray:
        """Of the last token that was read: (batch, vocab_size)."""
        return self._logits.numpy()

    def assume(self, length: int) -> None:
        """Take the cache for one of so many tokens; a step costs the same as after reading them."""
        self.length = length
        self._next.put(np.zeros((self.batch, 1), np.int64))

    def step(self) -> np.ndarray:
        """Read the likeliest next token of each sequence; returns the next ones (batch, 1).

        A captured step always writes the same place of the cache, which costs the same.
        """
        if not self._session.captured:
            self._set_length(self.length + 1)
            self._session.run(self._bind(self._next))
            return self._next.numpy()
        if self._captured is None:
            self._set_length(self.length + 1)
            self._captured = self._bind(self._next), Cache._graphs
            Cache._graphs += 1
        self._session.run(*self._captured)
        return self._next.numpy()

    def _set_length(self, length: int) -> None:
        """So many tokens are in the cache after the next call."""
        self.length = length
        self._lengths.put(np.full(self.batch, length - 1, np.int32))
        self._total.put(np.array(length, np.int32))

    def _bind(self, ids: Buffer) -> ort.IOBinding:
        binding = self._session.binding()
        ids.bind_input(binding, "input_ids")
        self._lengths.bind_input(binding, "seqlens_k")
        self._total.bind_input(binding, "total_sequence_length")
        for name, state in self._states.items():
            state.bind_input(binding, f"{PAST}{name}")
            state.bind_output(binding, f"{PRESENT}{name}")
        self._next.bind_output(binding, "next")
        self._logits.bind_output(binding, "logits")
        return binding
