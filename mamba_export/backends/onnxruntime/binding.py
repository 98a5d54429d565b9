"""IO binding: a graph's inputs and outputs tied to memory, and the run itself."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from mamba_export.backends.onnxruntime.device import (
    Device,
    DeviceTensor,
    element_type,
    storage_dtype,
)
from mamba_export.backends.onnxruntime.loading import LoadedModel, plain_reason
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import Metadata
from mamba_export.generation.state import allocating, check_reach
from mamba_export.generation.values import CheckedInputs, known_shape


def empty_state(metadata: Metadata, sizes: Mapping[str, int], device: Device) -> OrtState:
    """Buffers for states of fixed size; their content is undefined."""
    return OrtState(
        [
            DeviceTensor.empty(info.past.dtype, info.past.resolve(sizes), device)
            for info in metadata.states
        ]
    )


# What is bound must outlive the binding's use: a binding holds addresses, not owners.


def bind_input(binding: ort.IOBinding, name: str, tensor: DeviceTensor) -> None:
    """Bind a graph input to a tensor."""
    binding.bind_input(name, *_place(tensor))


def bind_output(binding: ort.IOBinding, name: str, tensor: DeviceTensor) -> None:
    """Bind a graph output to a tensor."""
    binding.bind_output(name, *_place(tensor))


def bind_states(
    binding: ort.IOBinding, metadata: Metadata, past: OrtState, present: OrtState
) -> None:
    """Bind every state input to ``past`` and every state output to ``present``."""
    for info, read, written in zip(metadata.states, past.tensors, present.tensors, strict=True):
        bind_input(binding, info.past.name, read)
        bind_output(binding, info.present.name, written)


def bind_host_input(binding: ort.IOBinding, name: str, dtype: str, stored: np.ndarray) -> None:
    """Bind a graph input to a host array of ``storage_dtype(dtype)``.

    A graph on the CPU reads the array itself, at every run; elsewhere its values are sent there now.
    """
    address = stored.ctypes.data
    binding.bind_input(name, "cpu", 0, element_type(dtype), list(stored.shape), address)


def bind_host_output(binding: ort.IOBinding, name: str, dtype: str, stored: np.ndarray) -> None:
    """Bind a graph output to a host array of ``storage_dtype(dtype)``."""
    address = stored.ctypes.data
    binding.bind_output(name, "cpu", 0, element_type(dtype), list(stored.shape), address)


def execute(model: LoadedModel, binding: ort.IOBinding) -> None:
    """Run the graph over what is bound; it has finished when this returns.

    Raises:
        SessionError: ONNX Runtime failed, for instance because memory ran out.
    """
    try:
        with model.gpu.lock if model.gpu is not None else contextlib.nullcontext():
            model.session.run_with_iobinding(binding)
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise SessionError(
            f"{model.metadata.model_path}: ONNX Runtime failed while running it: {plain_reason(error)}"
        ) from error


def run_once(
    model: LoadedModel, inputs: CheckedInputs, state: OrtState, *, with_outputs: bool = True
) -> tuple[list[np.ndarray], OrtState]:
    """One run of the graph, with memory of its own.

    What has a size that the inputs tell is written where we say. What has not, above all a state that grows,
    is allocated by ONNX Runtime.

    Args:
        model: the graph.
        inputs: checked.
        state: checked; left as it is.
        with_outputs: False leaves the outputs on the device, and returns none.

    Returns:
        The outputs in the program's order, and the state after the run, on the device.

    Raises:
        SessionError: the program's positions do not reach as far, or ONNX Runtime failed.
    """
    metadata, device = model.metadata, model.device
    check_reach(state.tensors, metadata, inputs.sizes)
    binding = model.session.io_binding()
    # These are held until the graph has run: the binding knows addresses only.
    held = [DeviceTensor.from_numpy(array, device) for array in inputs.arrays.values()]
    for name, tensor in zip(inputs.arrays, held, strict=True):
        bind_input(binding, name, tensor)
    bound: list[str] = []
    presents: list[DeviceTensor | None] = []
    for info, read in zip(metadata.states, state.tensors, strict=True):
        bind_input(binding, info.past.name, read)
        written = None
        if info.grows is None:
            written = DeviceTensor.empty(read.dtype, read.shape, device)
            bind_output(binding, info.present.name, written)
        else:
            binding.bind_output(info.present.name, device.name, device.index)
        bound.append(info.present.name)
        presents.append(written)
    arrays: list[np.ndarray | None] = []
    for value in metadata.outputs:
        shape = known_shape(value, inputs.sizes) if with_outputs else None
        array = None
        if shape is not None:
            stored = storage_dtype(value.dtype)
            with allocating(shape, stored.itemsize):
                array = np.empty(shape, stored)
            bind_host_output(binding, value.name, value.dtype, array)
        elif with_outputs:
            binding.bind_output(value.name, "cpu", 0)
        else:
            binding.bind_output(value.name, device.name, device.index)
        bound.append(value.name)
        arrays.append(array)
    execute(model, binding)

    allocated: dict[str, ort.OrtValue] = {}
    if None in presents or (with_outputs and any(array is None for array in arrays)):
        allocated = dict(zip(bound, binding.get_outputs(), strict=True))
    new_state = OrtState(
        [
            DeviceTensor.adopt(allocated[info.present.name], info.present.dtype, device)
            if written is None
            else written
            for info, written in zip(metadata.states, presents, strict=True)
        ]
    )
    if not with_outputs:
        return [], new_state
    outputs = [
        DeviceTensor.adopt(allocated[value.name], value.dtype, Device()).numpy()
        if array is None
        else array.view(NUMPY_DTYPES[value.dtype])
        for value, array in zip(metadata.outputs, arrays, strict=True)
    ]
    return outputs, new_state


def _place(tensor: DeviceTensor) -> tuple[str, int, object, list[int], int]:
    device = tensor.device
    kind = element_type(tensor.dtype)
    return device.name, device.index, kind, list(tensor.shape), tensor.address
