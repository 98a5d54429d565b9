"""One token at a time in TensorRT: every buffer allocated once, every step one launch of a CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np

from mamba_export.backends.tensorrt.binding import bind_states, new_state
from mamba_export.backends.tensorrt.cuda_driver import Gpu, Graph, Stream
from mamba_export.backends.tensorrt.engine import Execution
from mamba_export.backends.tensorrt.state import GpuTensor, TrtState
from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import Metadata
from mamba_export.generation.captures import Captures
from mamba_export.generation.state import step_sizes
from mamba_export.generation.values import as_array, step_tokens


class TrtStepper:
    """A batch of sequences that advances one token a step.

    Two sets of state buffers take turns: each step reads one and writes the other. The first step, from the
    caller's state, runs as it is, which TensorRT asks for before a capture; then each direction is captured
    once, tokens in and logits out included, and launched. Where a run cannot be captured (function bodies
    loop), every step runs as the first.

    Args:
        execution: on a profile that takes one step; returned when the stepper ends.
        metadata: of a language model whose states are of fixed size.
        gpu: that it runs on.
        stream: of this stepper alone.
        state: what to start from; it is left as it is.
        captures: of the session.
        give_back: takes the execution at the end.
    """

    def __init__(
        self,
        execution: Execution,
        metadata: Metadata,
        gpu: Gpu,
        stream: Stream,
        state: TrtState,
        captures: Captures,
        give_back: Callable[[Execution], None],
    ) -> None:
        self._execution = execution
        self._metadata = metadata
        self._gpu = gpu
        self._stream = stream
        batch = state.batch
        output = metadata.outputs[0]
        shape = output.resolve(step_sizes(metadata, batch))
        self._tokens = gpu.host_array((batch, 1), np.dtype(np.int64))
        self._logits = gpu.host_array(shape, NUMPY_DTYPES[output.dtype])
        self._device_tokens = GpuTensor("int64", (batch, 1), gpu, stream)
        self._device_logits = GpuTensor(output.dtype, shape, gpu, stream)
        self._state = state
        self._pair = tuple(new_state(execution, metadata, state) for _ in range(2))
        self._steps = 0
        self._graphs: list[Graph] = []
        self._captures = captures
        self._can_be_captured = True
        execution.set_shape(metadata.inputs[0].name, (batch, 1))
        execution.set_address(metadata.inputs[0].name, self._device_tokens.address)
        execution.set_address(output.name, self._device_logits.address)
        self._finalizer = weakref.finalize(self, give_back, execution)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token a sequence.

        Args:
            tokens: (batch,) integers in [0, vocab_size).

        Returns:
            Logits (batch, vocab_size) fp32, valid until the next step.

        Raises:
            SessionError: the tokens are others, or TensorRT or the driver failed.
        """
        self._gpu.activate()
        self._tokens[:, 0] = step_tokens(tokens, len(self._tokens), self._metadata)
        present = self._pair[self._steps % 2]
        graph = self._graph(present)
        if graph is None:
            bind_states(self._execution, self._metadata, self._state, present)
            self._work()
        else:
            graph.launch()
        self._stream.synchronize()
        self._state = present
        self._steps += 1
        return self._logits[:, 0].astype(np.float32, copy=False)

    @property
    def state(self) -> TrtState:
        """The state after the last step, valid until the next step."""
        return self._state

    def _graph(self, present: TrtState) -> Graph | None:
        """The captured step into ``present``; None where it has to run as it is."""
        if self._steps == 0 or not self._can_be_captured:
            return None
        index = self._steps - 1
        if index < 2:
            bind_states(self._execution, self._metadata, self._state, present)
            self._can_be_captured = (
                self._captures.problem is None and self._execution.can_be_captured(self._stream)
            )
            if not self._can_be_captured:
                return None
            try:
                self._graphs.append(self._stream.capture(self._work))
            except SessionError as error:  # TensorRT refuses, or the driver
                self._can_be_captured = False
                self._captures.give_up(error)
                return None
        return self._graphs[index % 2]

    def _work(self) -> None:
        stream = self._stream
        stream.upload(self._device_tokens.address, self._tokens)
        self._execution.enqueue(stream)
        stream.download(self._logits, self._device_logits.address)


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
