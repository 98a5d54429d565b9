"""A program on PyTorch's tensors: what ``verify`` compares a session with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mamba_export.contract.program import Program
from mamba_export.export.capture import evaluating
from mamba_export.export.dtypes import TORCH


@torch.no_grad()
def run_program(
    program: Program,
    inputs: Mapping[str, Tensor],
    states: Sequence[Tensor] | None = None,
    *,
    wide: torch.dtype | None = None,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Run a program's module in eval mode.

    Args:
        program: its module may be of another dtype than the program says (a float64 truth).
        inputs: by name; the shapes of the program's.
        states: one a state, in the program's order; None for their start values.
        wide: dtype that floating inputs and states are given in; None as they are, start values as the program
            says.

    Returns:
        Outputs by name, and the states after.
    """
    arrays = [inputs[value.name] for value in program.inputs]
    if states is None:
        sizes: dict[str, int] = {}
        for value, tensor in zip(program.inputs, arrays, strict=True):
            sizes.update(
                (size, number)
                for size, number in zip(value.shape, tensor.shape, strict=True)
                if isinstance(size, str)
            )
        sizes.update((state.grown_axis, 0) for state in program.states if state.grown_axis)
        states = [
            torch.full(state.past.resolve(sizes), state.start, dtype=TORCH[state.past.dtype])
            for state in program.states
        ]
    if wide is not None:
        arrays, states = _widened(arrays, wide), _widened(states, wide)
    with evaluating(program.module):
        found = program.module(*arrays, *states)
    outputs = dict(zip((value.name for value in program.outputs), found, strict=False))
    return outputs, list(found[len(outputs) :])


def _widened(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
