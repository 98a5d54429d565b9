"""One token at a time in ONNX Runtime, each step a replay of a CUDA graph."""

from __future__ import annotations

import weakref

import numpy as np

from mamba_export.backends.onnxruntime.cuda_graph import StepGraphs
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.generation.sampling import Sampler, check_finite
from mamba_export.generation.values import step_tokens


class GraphStepper:
    """A batch of sequences that advances one token a step, in a CUDA graph.

    Args:
        graphs: of the session.
        state: what to start from; it is left as it is.
        sampler: how tokens are chosen on the device; None for ``step`` alone.
        tokens: (batch,) what the first ``next`` reads.

    Raises:
        SessionError: the GPU has no memory for the buffers.
    """

    def __init__(
        self,
        graphs: StepGraphs,
        state: OrtState,
        sampler: Sampler | None = None,
        tokens: np.ndarray | None = None,
    ) -> None:
        self._graph = graphs.take(state)
        weakref.finalize(self, graphs.put, self._graph).atexit = False
        self._sampler = sampler
        self._metadata = graphs.metadata
        self._graph.start(state)
        self._graph.set_choice(sampler)
        if tokens is not None:
            self._graph.set_tokens(tokens)

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed: from the second on, where the model can be captured."""
        return self._graph.is_captured

    @property
    def capture_problem(self) -> str | None:
        """Why the model's steps could not be captured; they then run without a CUDA graph, and slower."""
        return self._graph.capture_problem

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token a sequence.

        Args:
            tokens: (batch,) integers in [0, vocab_size).

        Returns:
            Logits (batch, vocab_size) fp32, valid until the next step.

        Raises:
            SessionError: the tokens are others, or ONNX Runtime or CUDA failed.
        """
        tokens = step_tokens(tokens, self._graph.batch, self._metadata)
        if self.is_ahead:
            raise ValueError("a step is under way already, with the tokens that were chosen")
        return self._graph.logits(tokens)

    def next(self, *, goes_on: bool = False) -> np.ndarray:
        """Read the tokens that were chosen last, and choose the next ones.

        Args:
            goes_on: there will be another call: its step may be launched now, so that the GPU need not wait for
                the host. ``state`` is then that step's, after its call.

        Returns:
            (batch,) int64.

        Raises:
            SessionError: ONNX Runtime or CUDA failed, or logits are not finite.
        """
        if self._sampler is None:
            raise ValueError("the stepper was made without a sampler")
        if not self.is_ahead:
            self._launch(self._sampler)
        if goes_on and self.is_captured:
            self._launch(self._sampler)
        tokens = self._graph.chosen().copy()
        check_finite(tokens >= 0)
        self._sampler.note(tokens)
        return tokens

    @property
    def is_ahead(self) -> bool:
        """Whether the step of the next ``next`` is under way."""
        return self._graph.is_ahead

    def _launch(self, sampler: Sampler) -> None:
        self._graph.launch(sampler.draws() if sampler.sampling.temperature != 0 else None)

    @property
    def state(self) -> OrtState:
        """The state after the last step, valid until the next step.

        Raises:
            ValueError: the next step is under way, and writes it.
        """
        if self.is_ahead:
            raise ValueError("the next step is under way: there is no state before its end")
        return self._graph.block.lend()
