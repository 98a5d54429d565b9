"""One token at a time in TensorRT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mamba_export.backends.tensorrt.captured_steps import CapturedSteps
from mamba_export.backends.tensorrt.state import TrtState
from mamba_export.generation.values import as_array, step_tokens


class TrtStepper:
    """A batch of sequences that advances one token a step.

    Args:
        steps: of a language model whose states are of fixed size; this stepper's alone.
    """

    def __init__(self, steps: CapturedSteps) -> None:
        self._steps = steps

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token a sequence.

        Args:
            tokens: (batch,) integers in [0, vocab_size).

        Returns:
            Logits (batch, vocab_size) fp32, valid until the next step.

        Raises:
            SessionError: the tokens are others, or TensorRT or the driver failed.
        """
        steps = self._steps
        logits, *_ = steps.advance(step_tokens(tokens, steps.batch, steps.metadata))
        return logits.astype(np.float32, copy=False)

    @property
    def state(self) -> TrtState:
        """The state after the last step, valid until the next step."""
        return self._steps.state


class GrowingStepper:
    """A batch of sequences that advances one token a step, with states that grow: every step runs as it is.

    Args:
        run: from token ids (batch, 1) and the state before them to logits and the state after.
        state: what to start from; it is left as it is.
    """

    def __init__(
        self, run: Callable[[np.ndarray, TrtState], tuple[np.ndarray, TrtState]], state: TrtState
    ) -> None:
        self._run = run
        self._state = state

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token a sequence; arguments, results and errors are those of ``TrtStepper.step``."""
        column = as_array(tokens, "tokens").reshape(-1, 1)
        logits, self._state = self._run(column, self._state)  # which checks it
        return logits[:, 0].astype(np.float32, copy=False)

    @property
    def state(self) -> TrtState:
        """The state after the last step."""
        return self._state
