"""Tying states to an execution context."""

from __future__ import annotations

from mamba_export.backends.tensorrt.cuda_driver import Gpu, Stream
from mamba_export.backends.tensorrt.engine import Execution
from mamba_export.backends.tensorrt.state import GpuTensor, TrtState
from mamba_export.folder.metadata import Metadata


def empty_state(metadata: Metadata, batch: int, gpu: Gpu, stream: Stream) -> TrtState:
    """Buffers for the states of a batch; their content is undefined."""
    return TrtState(
        [
            GpuTensor(info.past.dtype, info.past.resolve(batch), gpu, stream)
            for info in metadata.states
        ],
        stream,
    )


def bind_states(
    execution: Execution, metadata: Metadata, past: TrtState, present: TrtState
) -> None:
    """Tie every state input to ``past`` and every state output to ``present``."""
    for info, read, written in zip(metadata.states, past.tensors, present.tensors, strict=True):
        execution.set_shape(info.past.name, read.shape)
        execution.set_address(info.past.name, read.address)
        execution.set_address(info.present.name, written.address)
