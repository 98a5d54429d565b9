"""Tying states to an execution context."""

from __future__ import annotations

from mamba_export.backends.tensorrt.engine import Execution
from mamba_export.backends.tensorrt.state import TrtState
from mamba_export.folder.metadata import Metadata


def new_state(execution: Execution, metadata: Metadata, past: TrtState) -> TrtState:
    """Buffers for the states after a run from ``past``; their content is undefined.

    Args:
        execution: knows the shapes of what grows, once those of every input have been set.
        metadata: of the program.
        past: the states before the run.
    """
    return TrtState(
        [
            read.empty(
                read.shape if info.grows is None else execution.output_shape(info.present.name)
            )
            for info, read in zip(metadata.states, past.tensors, strict=True)
        ],
        past.stream,
    )


def bind_pasts(execution: Execution, metadata: Metadata, past: TrtState) -> None:
    """Tie every state input to ``past``."""
    for info, read in zip(metadata.states, past.tensors, strict=True):
        execution.set_shape(info.past.name, read.shape)
        execution.set_address(info.past.name, read.address)


def bind_presents(execution: Execution, metadata: Metadata, present: TrtState) -> None:
    """Tie every state output to ``present``."""
    for info, written in zip(metadata.states, present.tensors, strict=True):
        execution.set_address(info.present.name, written.address)


def bind_states(
    execution: Execution, metadata: Metadata, past: TrtState, present: TrtState
) -> None:
    """Tie every state input to ``past`` and every state output to ``present``."""
    bind_pasts(execution, metadata, past)
    bind_presents(execution, metadata, present)
