"""One token at a time in ONNX Runtime."""

from __future__ import annotations

import numpy as np

from mamba_export.backends.onnxruntime.binding import run_once
from mamba_export.backends.onnxruntime.bound_steps import BoundSteps
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.generation.state import step_sizes
from mamba_export.generation.values import CheckedInputs, step_tokens


class OrtStepper:
    """A batch of sequences that advances one token a step.

    Args:
        model: a language model whose states are of fixed size.
        state: what to start from; it is left as it is.
    """

    def __init__(self, model: LoadedModel, state: OrtState) -> None:
        self._steps = BoundSteps(model, state)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token a sequence.

        Args:
            tokens: (batch,) integers in [0, vocab_size).

        Returns:
            Logits (batch, vocab_size) fp32, valid until the next step.

        Raises:
            SessionError: the tokens are others, or ONNX Runtime failed.
        """
        steps = self._steps
        logits, *_ = steps.advance(step_tokens(tokens, steps.batch, steps.metadata))
        return logits.astype(np.float32, copy=False)

    @property
    def state(self) -> OrtState:
        """The state after the last step, valid until the next step."""
        return self._steps.state


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
