"""Steps in TensorRT: every buffer allocated once, every step one launch of a CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np

from mamba_export.backends.tensorrt.binding import bind_states, new_state
from mamba_export.backends.tensorrt.cuda_driver import Gpu, Graph, Stream
from mamba_export.backends.tensorrt.engine import Execution
from mamba_export.backends.tensorrt.state import GpuTensor, TrtState
from mamba_export.contract.program import Value
from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import Metadata
from mamba_export.generation.captures import Captures
from mamba_export.generation.state import step_sizes


class _Shared:
    """A tensor of a step on the GPU, and the array of the host that it is copied from or to."""

    def __init__(self, value: Value, shape: tuple[int, ...], gpu: Gpu, stream: Stream) -> None:
        self.name = value.name
        self.host = gpu.host_array(shape, NUMPY_DTYPES[value.dtype])
        self.tensor = GpuTensor(value.dtype, shape, gpu, stream)


class CapturedSteps:
    """Steps of a batch of sequences, each over one element along the input's length.

    Two sets of state buffers take turns: each step reads one and writes the other. The first step, from the
    caller's state, runs as it is, which TensorRT asks for before a capture; then each direction is captured
    once, input and outputs included, and launched. Where a run cannot be captured (function bodies
    loop), every step runs as the first.

    Args:
        execution: on a profile that takes one step; returned when the steps end.
        metadata: of a program of one input (batch, length, ...) and of states of fixed size.
        gpu: that it runs on.
        stream: of these steps alone.
        state: what to start from; it is left as it is.
        captures: of the session.
        give_back: takes the execution at the end.

    Attributes:
        batch: number of sequences.
        state: after the last step, valid until the next.
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
        self.metadata = metadata
        self._gpu = gpu
        self._stream = stream
        self.batch = state.batch
        sizes = step_sizes(metadata, state.batch)

        def shared(value: Value) -> _Shared:
            return _Shared(value, value.resolve(sizes), gpu, stream)

        self._input = shared(metadata.inputs[0])
        self._outputs = [shared(value) for value in metadata.outputs]
        self.state = state
        self._pair = tuple(new_state(execution, metadata, state) for _ in range(2))
        self._steps = 0
        self._graphs: list[Graph] = []
        self._captures = captures
        self._can_be_captured = True
        execution.set_shape(self._input.name, self._input.tensor.shape)
        for one in (self._input, *self._outputs):
            execution.set_address(one.name, one.tensor.address)
        self._finalizer = weakref.finalize(self, give_back, execution)

    @property
    def is_captured(self) -> bool:
        """Whether steps are launched as graphs: from the second on, where the run can be captured."""
        return bool(self._graphs)

    def advance(self, element: np.ndarray) -> list[np.ndarray]:
        """Read an element, (batch, ...), that was checked.

        Returns:
            The program's outputs without the length, in its dtypes; valid until the next step.

        Raises:
            SessionError: TensorRT or the driver failed.
        """
        self._gpu.activate()
        self._input.host[:, 0] = element
        present = self._pair[self._steps % 2]
        graph = self._graph(present)
        if graph is None:
            bind_states(self._execution, self.metadata, self.state, present)
            self._work()
        else:
            graph.launch()
        self._stream.synchronize()
        self.state = present
        self._steps += 1
        return [output.host[:, 0] for output in self._outputs]

    def _graph(self, present: TrtState) -> Graph | None:
        """The captured step into ``present``; None where it has to run as it is."""
        if self._steps == 0 or not self._can_be_captured:
            return None
        index = self._steps - 1
        if index < 2:
            bind_states(self._execution, self.metadata, self.state, present)
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
        stream.upload(self._input.tensor.address, self._input.host)
        self._execution.enqueue(stream)
        for output in self._outputs:
            stream.download(output.host, output.tensor.address)
