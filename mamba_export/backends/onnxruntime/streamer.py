"""One sample at a time in ONNX Runtime: sensors, sound, whatever is no tokens."""

from __future__ import annotations

import numpy as np

from mamba_export.backends.onnxruntime.binding import (
    bind_input,
    bind_output,
    bind_states,
    execute,
)
from mamba_export.backends.onnxruntime.bound_steps import BoundSteps
from mamba_export.backends.onnxruntime.capture import capture
from mamba_export.backends.onnxruntime.cuda_stream import GpuStream, Graph
from mamba_export.backends.onnxruntime.device import DeviceTensor, storage_dtype
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.backends.onnxruntime.state_block import BlockKind, StateBlock
from mamba_export.contract.program import Value
from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.generation.state import step_sizes
from mamba_export.generation.streamer import Streamer


class OrtStreamer(Streamer[OrtState]):
    """A streamer on any provider.

    Args:
        model: one that ``check_samples`` takes.
        state: what to start from; it is left as it is.
    """

    def __init__(self, model: LoadedModel, state: OrtState) -> None:
        super().__init__(BoundSteps(model, state))


class _Shared:
    """A tensor of a step on the device, and memory of the host that the GPU copies it from or to."""

    def __init__(self, value: Value, shape: tuple[int, ...], model: LoadedModel) -> None:
        assert model.gpu is not None
        self.name = value.name
        self.tensor = DeviceTensor.empty(value.dtype, shape, model.device)
        self._host = model.gpu.host_array(shape, storage_dtype(value.dtype))
        self.step = self._host.view(NUMPY_DTYPES[value.dtype])[:, 0]
        self._gpu = model.gpu

    def queue_upload(self) -> None:
        """Queue a copy to the device of what the host's memory holds then."""
        self._gpu.queue_copy(self.tensor.address, self._host.ctypes.data, self._host.nbytes)

    def queue_download(self) -> None:
        """Queue a copy to the host."""
        self._gpu.queue_copy(self._host.ctypes.data, self.tensor.address, self._host.nbytes)


class _GraphSteps:
    """``BoundSteps`` in a CUDA graph, copies included; arguments and errors are ``GraphStreamer``'s."""

    def __init__(self, model: LoadedModel, state: OrtState) -> None:
        if model.gpu is None:
            raise ValueError("the model has no stream to capture on")
        self._model = model
        self._gpu: GpuStream = model.gpu
        self.metadata = metadata = model.metadata
        self.batch = state.batch
        sizes = step_sizes(metadata, state.batch)
        self._input = _Shared(metadata.inputs[0], metadata.inputs[0].resolve(sizes), model)
        self._outputs = [_Shared(value, value.resolve(sizes), model) for value in metadata.outputs]
        kind = BlockKind.of(model)
        # The graph of somebody's module may write a state before it has read it for the last time.
        self._past, self._present = (StateBlock(kind, state.batch) for _ in range(2))
        binding = model.session.io_binding()
        bind_input(binding, self._input.name, self._input.tensor)
        bind_states(binding, metadata, self._past.state, self._present.state)
        for output in self._outputs:
            bind_output(binding, output.name, output.tensor)
        self._binding = binding
        self.graph: Graph | None = None
        self.capture_problem: str | None = None
        self._has_run = False
        with self._gpu.lock:
            self._past.queue_copy_of(state)
            self._gpu.wait()

    @property
    def state(self) -> OrtState:
        """The state after the last step, valid until the next step."""
        return self._past.state

    def advance(self, element: np.ndarray) -> list[np.ndarray]:
        """Read an element, (batch, ...), that was checked; results and errors are those of ``BoundSteps``."""
        self._input.step[...] = element
        if self.graph is None and self._has_run and self.capture_problem is None:
            try:
                self.graph = capture(
                    self._model, self._binding, self._queue_rest, self._input.queue_upload
                )
            except SessionError as error:
                self.capture_problem = str(error)
        if self.graph is None:
            self._run_uncaptured()
        else:
            with self._gpu.lock:
                self._gpu.run(self.graph)
        return [output.step for output in self._outputs]

    def _run_uncaptured(self) -> None:
        with self._gpu.lock:
            self._input.queue_upload()
            self._gpu.wait()
        execute(self._model, self._binding)
        with self._gpu.lock:
            self._queue_rest()
            self._gpu.wait()
        self._has_run = True

    def _queue_rest(self) -> None:
        """Queue what follows the program's run in a step."""
        self._past.queue_copy_of(self._present.state)
        for output in self._outputs:
            output.queue_download()


class GraphStreamer(Streamer[OrtState]):
    """A streamer on an NVIDIA GPU: from the second step on one launch of a CUDA graph, copies included.

    Args:
        model: one that ``check_samples`` takes, with a stream, ``model.gpu``.
        state: what to start from; it is left as it is.

    Raises:
        SessionError: the GPU has no memory for the buffers.
    """

    def __init__(self, model: LoadedModel, state: OrtState) -> None:
        self._graph_steps = _GraphSteps(model, state)
        super().__init__(self._graph_steps)

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed: from the second on, where the program can be captured."""
        return self._graph_steps.graph is not None

    @property
    def capture_problem(self) -> str | None:
        """Why the program's steps could not be captured; they then run without a CUDA graph, and slower."""
        return self._graph_steps.capture_problem
