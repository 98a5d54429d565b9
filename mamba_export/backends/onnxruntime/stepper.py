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
    run_once,
)
from mamba_export.backends.onnxruntime.device import storage_dtype
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.generation.state import allocating, batch_sizes, step_sizes
from mamba_export.generation.values import CheckedInputs, step_tokens


class OrtStepper:
    """A batch of sequences that advances one token a step.

    Two sets of state buffers take turns: each step reads one and writes the other. Both directions are
    bound to the graph at the start, so that a step binds nothing and memory does not grow.

    Args:
        model: a language model whose states are of fixed size.
        state: what to start from; it is left as it is.
    """

    def __init__(self, model: LoadedModel, state: OrtState) -> None:
        self._model = model
        self._metadata = metadata = model.metadata
        # On the CPU the graph reads this array itself; elsewhere a step sends it there.
        self._tokens = np.zeros((state.batch, 1), np.int64)
        self._sends_tokens = model.device.name != "cpu"
        self._output = output = metadata.outputs[0]
        shape = output.resolve(step_sizes(metadata, state.batch))
        stored = storage_dtype(output.dtype)
        with allocating(shape, stored.itemsize):
            self._logits = np.empty(shape, stored)
        self._state = state
        sizes = batch_sizes(metadata, state.batch)
        one, other = (empty_state(metadata, sizes, model.device) for _ in range(2))
        # Each turn is a binding, the state that it reads and the state that it writes.
        self._turn = self._bind(state, one)
        self._turns = itertools.cycle((self._bind(one, other), self._bind(other, one)))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token a sequence.

        Args:
            tokens: (batch,) integers in [0, vocab_size).

        Returns:
            Logits (batch, vocab_size) fp32, valid until the next step.

        Raises:
            SessionError: the tokens are others, or ONNX Runtime failed.
        """
        self._tokens[:, 0] = step_tokens(tokens, len(self._tokens), self._metadata)
        binding, _, present = self._turn
        if self._sends_tokens:
            binding.bind_cpu_input(self._metadata.inputs[0].name, self._tokens)
        execute(self._model, binding)
        self._state = present
        self._turn = next(self._turns)
        logits = self._logits.view(NUMPY_DTYPES[self._output.dtype])[:, 0]
        return logits.astype(np.float32, copy=False)

    @property
    def state(self) -> OrtState:
        """The state after the last step, valid until the next step."""
        return self._state

    def _bind(self, past: OrtState, present: OrtState) -> tuple[ort.IOBinding, OrtState, OrtState]:
        binding = self._model.session.io_binding()
        if not self._sends_tokens:
            binding.bind_input(
                self._metadata.inputs[0].name,
                "cpu",
                0,
                np.int64,
                list(self._tokens.shape),
                self._tokens.ctypes.data,
            )
        bind_states(binding, self._metadata, past, present)
        bind_host_output(binding, self._output.name, self._output.dtype, self._logits)
        return binding, past, present


class GrowingStepper:
    """A batch of sequences that advances one token a step, with states that grow: bound anew at every step.

    Args:
        model: a language model.
        state: what to start from; it is left as it is.
    """

    def __init__(self, model: LoadedModel, state: OrtState) -> None:
        self._model = model
        self._state = state
        self._sizes = step_sizes(model.metadata, state.batch)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token a sequence; arguments, results and errors are those of ``OrtStepper.step``."""
        name = self._model.metadata.inputs[0].name
        checked = step_tokens(tokens, self._state.batch, self._model.metadata)
        inputs = CheckedInputs({name: checked[:, None].astype(np.int64, copy=False)}, self._sizes)
        (logits, *_), self._state = run_once(self._model, inputs, self._state)
        return logits[:, 0].astype(np.float32, copy=False)

    @property
    def state(self) -> OrtState:
        """The state after the last step."""
        return self._state
