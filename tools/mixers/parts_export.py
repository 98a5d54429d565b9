"""Export of a module that reads its sequence in parts of any length, with its states carried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

import mamba_export

_GROWN = 3
"""Length of an example of a state that grows: unlike every other size, 0 and 1."""


def export_in_parts(
    program: nn.Module,
    example: Tensor,
    initial_state: Sequence[Tensor],
    output: Path,
    *,
    input_name: str,
    output_names: Sequence[str],
    growing: Sequence[int | None] | None = None,
    force: bool = False,
) -> Path:
    """Export ``program(input, *state) -> (*outputs, *state after)``.

    Args:
        program: the module.
        example: of its input, (batch, length, ...), both axes of any size in the file.
        initial_state: of ``example``'s batch, (batch, ...) each.
        output: folder to write.
        input_name: what ``program``'s own ``forward`` calls the input.
        output_names: of what is returned before the state.
        growing: of each tensor of the state the axis along which it grows, or None. Without it none grows.
        force: replace an existing folder.

    Returns:
        ``output``.
    """
    axes = growing or [None] * len(initial_state)
    examples = [
        one if axis is None else one.new_zeros([*one.shape[:axis], _GROWN, *one.shape[axis + 1 :]])
        for one, axis in zip(initial_state, axes, strict=True)
    ]
    names = [f"state_{index}" for index in range(len(examples))]
    return mamba_export.export(
        program,
        (example, *examples),
        output=output,
        dynamic_shapes={
            input_name: {0: "batch", 1: "length"},
            **{name: {0: "batch"} for name in names},
        },
        output_names=[*output_names, *(f"{name}_after" for name in names)],
        states=[
            mamba_export.State(name, f"{name}_after", grows=axis)
            for name, axis in zip(names, axes, strict=True)
        ],
        force=force,
    )
