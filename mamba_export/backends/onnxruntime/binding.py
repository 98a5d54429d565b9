"""IO binding: a graph's inputs and outputs tied to memory, and the run itself."""

from __future__ import annotations

import contextlib

import numpy as np
import onnxruntime as ort

from mamba_export.backends.onnxruntime.device import Device, DeviceTensor, element_type
from mamba_export.backends.onnxruntime.loading import LoadedModel, plain_reason
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.errors import SessionError
from mamba_export.folder.metadata import Metadata


def empty_state(metadata: Metadata, batch: int, device: Device) -> OrtState:
    """Buffers for the states of a batch; their content is undefined."""
    return OrtState(
        [
            DeviceTensor.empty(info.past.dtype, info.past.resolve(batch), device)
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


def bind_host_output(binding: ort.IOBinding, name: str, dtype: str, stored: np.ndarray) -> None:
    """Bind a graph output to a host array of ``storage_dtype(dtype)``."""
    address = stored.ctypes.data
    binding.bind_output(name, "cpu", 0, element_type(dtype), list(stored.shape), address)


def execute(model: LoadedModel, binding: ort.IOBinding) -> None:
    """Run the graph over what is bound; it has finished when this returns.

    Raises:
        SessionError: ONNX Runtime failed, for instance for want of memory.
    """
    try:
        with model.gpu.lock if model.gpu is not None else contextlib.nullcontext():
            model.session.run_with_iobinding(binding)
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise SessionError(
            f"{model.metadata.model_path}: ONNX Runtime failed while running it: {plain_reason(error)}"
        ) from error


def _place(tensor: DeviceTensor) -> tuple[str, int, object, list[int], int]:
    device = tensor.device
    kind = element_type(tensor.dtype)
    return device.name, device.index, kind, list(tensor.shape), tensor.address
