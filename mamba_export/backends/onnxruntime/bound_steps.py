"""Steps in ONNX Runtime, with every buffer allocated and bound once."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime as ort

from mamba_export.backends.onnxruntime.binding import (
    bind_host_input,
    bind_host_output,
    bind_states,
    empty_state,
    execute,
)
from mamba_export.backends.onnxruntime.device import storage_dtype
from mamba_export.backends.onnxruntime.loading import LoadedModel
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.generation.state import allocating, batch_sizes, step_sizes


class BoundSteps:
    """Steps of a batch of sequences, each over one element along the input's length.

    Two sets of state buffers take turns: each step reads one and writes the other. Both directions are
    bound to the graph at the start, so that a step binds nothing and memory does not grow. Where our kernels
    run a model of this package on a CPU, one set is read and written in its place: a third less of the
    states' traffic, for what is written need not be fetched before.

    Args:
        model: of one input (batch, length, ...) and of states of fixed size.
        state: what to start from; it is left as it is.
    """

    def __init__(self, model: LoadedModel, state: OrtState) -> None:
        self._model = model
        self.metadata = metadata = model.metadata
        self.batch = state.batch
        self._value = value = metadata.inputs[0]
        sizes = step_sizes(metadata, state.batch)
        # On the CPU the graph reads this array itself; elsewhere a step sends it there.
        self._input = np.zeros(value.resolve(sizes), storage_dtype(value.dtype))
        self._sends_input = model.device.name != "cpu"
        self._outputs: list[np.ndarray] = []
        for output in metadata.outputs:
            shape, stored = output.resolve(sizes), storage_dtype(output.dtype)
            with allocating(shape, stored.itemsize):
                self._outputs.append(np.empty(shape, stored))
        # What is shown of them: one step, in the dtypes of the program.
        self._read = self._input.view(NUMPY_DTYPES[value.dtype])[:, 0]
        self._written = [
            array.view(NUMPY_DTYPES[output.dtype])[:, 0]
            for array, output in zip(self._outputs, metadata.outputs, strict=True)
        ]
        self.state = state
        sizes = batch_sizes(metadata, state.batch)
        one = empty_state(metadata, sizes, model.device)
        other = one if _writes_in_place(model) else empty_state(metadata, sizes, model.device)
        # Each turn is a binding, the state that it reads and the state that it writes.
        self._turn = self._bind(state, one)
        self._turns = itertools.cycle((self._bind(one, other), self._bind(other, one)))

    def advance(self, element: np.ndarray) -> list[np.ndarray]:
        """Read an element, (batch, ...), that was checked.

        Returns:
            The program's outputs without the length, in its dtypes; valid until the next step, as ``state`` is.

        Raises:
            SessionError: ONNX Runtime failed; states that are written in their place may be lost.
        """
        self._read[...] = element
        binding, _, present = self._turn
        if self._sends_input:
            bind_host_input(binding, self._value.name, self._value.dtype, self._input)
        execute(self._model, binding)
        self.state = present
        self._turn = next(self._turns)
        return self._written

    def _bind(self, past: OrtState, present: OrtState) -> tuple[ort.IOBinding, OrtState, OrtState]:
        binding = self._model.session.io_binding()
        if not self._sends_input:
            bind_host_input(binding, self._value.name, self._value.dtype, self._input)
        bind_states(binding, self.metadata, past, present)
        for output, array in zip(self.metadata.outputs, self._outputs, strict=True):
            bind_host_output(binding, output.name, output.dtype, array)
        return binding, past, present


def _writes_in_place(model: LoadedModel) -> bool:
    """Whether each state may be written where it was read.

    In a graph of ours one node reads a state and writes it, and our CPU kernels read each number before they
    write it. A graph of someone else's may read a state once more when the new one is already there.
    """
    return model.native and model.device.name == "cpu" and model.metadata.model is not None
