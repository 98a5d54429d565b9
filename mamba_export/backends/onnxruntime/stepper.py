"""One token at a time in ONNX Runtime, with every buffer allocated and bound once."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime as ort

from mamba_export.backends.onnxruntime.binding import (
    bind_host_output,
    bind_states,
    empty_state,
    execute,
)
from mamba_export.backends.onnxruntime.device import storage_dtype
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.folder.dtypes import NUMPY_DTYPES


class OrtStepper:
    """A batch of sequences that advances one token a step.

    Two sets of state buffers take turns: each step reads one and writes the other. Both directions are
    bound to the graph at the start, so that a step binds nothing and memory does not grow.

    Args:
        model: a language model.
        state: what to start from; it is left as it is.
    """

    def __init__(self, model: LoadedModel, state: OrtState) -> None:
        self._model = model
        self._metadata = metadata = model.metadata
        # On the CPU the graph reads this array itself; elsewhere a step sends it there.
        self._tokens = np.zeros((state.batch, 1), np.int64)
        self._sends_tokens = model.device.name != "cpu"
        shape = metadata.output.resolve(state.batch)
        self._logits = np.empty(shape, storage_dtype(metadata.output.dtype))
        self._state = state
        one, other = (empty_state(metadata, state.batch, model.device) for _ in range(2))
        # Each turn is a binding, the state that it reads and the state that it writes.
        self._turn = self._bind(state, one)
        self._turns = itertools.cycle((self._bind(one, other), self._bind(other, one)))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token a sequence.

        Args:
            tokens: (batch,) int64, trusted to be in [0, vocab_size).

        Returns:
            Logits (batch, vocab_size) fp32, valid until the next step.

        Raises:
            SessionError: ONNX Runtime failed.
        """
        self._tokens[:, 0] = tokens
        binding, _, present = self._turn
        if self._sends_tokens:
            binding.bind_cpu_input(self._metadata.sequence.name, self._tokens)
        execute(self._model, binding)
        self._state = present
        self._turn = next(self._turns)
        logits = self._logits.view(NUMPY_DTYPES[self._metadata.output.dtype])[:, 0]
        return logits.astype(np.float32, copy=False)

    @property
    def state(self) -> OrtState:
        """The state after the last step, valid until the next step."""
        return self._state

    def _bind(self, past: OrtState, present: OrtState) -> tuple[ort.IOBinding, OrtState, OrtState]:
        binding = self._model.session.io_binding()
        if not self._sends_tokens:
            binding.bind_input(
                self._metadata.sequence.name,
                "cpu",
                0,
                np.int64,
                list(self._tokens.shape),
                self._tokens.ctypes.data,
            )
        bind_states(binding, self._metadata, past, present)
        output = self._metadata.output
        bind_host_output(binding, output.name, output.dtype, self._logits)
        return binding, past, present
