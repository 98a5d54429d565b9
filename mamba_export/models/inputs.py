"""What callers give a module: tensors that it can take, or one line that says what was expected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_export.errors import InputError
from mamba_export.given import shown


def check_sequence(x: Any, width: int) -> None:
    """Check the input of a block or a backbone.

    Raises:
        InputError: x is no floating tensor (batch, length, width).
    """
    expected = f"expected a floating tensor (batch, length, {width})"
    if not isinstance(x, Tensor):
        raise InputError(f"x is {shown(x)}, {expected}")
    if x.dim() != 3 or x.shape[-1] != width:
        raise InputError(f"x has shape {tuple(x.shape)}, {expected}")
    if not x.is_floating_point():
        raise InputError(f"x is {x.dtype}, {expected}")


def check_tokens(input_ids: Any) -> None:
    """Check the input of a language model.

    Raises:
        InputError: input_ids is no tensor (batch, length) of int64 or int32 with length >= 1.
    """
    expected = "expected int64 or int32 (batch, length) with length >= 1"
    if not isinstance(input_ids, Tensor):
        raise InputError(f"input_ids is {shown(input_ids)}, {expected}")
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise InputError(f"input_ids has shape {tuple(input_ids.shape)}, {expected}")
    if input_ids.dtype not in (torch.int32, torch.int64):
        raise InputError(f"input_ids is {input_ids.dtype}, {expected}")


def check_state(state: Any) -> None:
    """Check that the state of a block is one; the operators check its tensors' shapes.

    Raises:
        InputError: it is not a LayerState of two tensors.
    """
    parts = (getattr(state, "conv", None), getattr(state, "recurrent", None))
    if not all(isinstance(part, Tensor) for part in parts):
        raise InputError(
            f"state is {shown(state)}, expected None or the LayerState that the previous part returned"
        )


def check_states(state: Any, layers: int) -> None:
    """Check the state of a backbone.

    Raises:
        InputError: it is neither None nor a list of as many states as there are layers.
    """
    if state is None:
        return
    if not isinstance(state, (list, tuple)):
        raise InputError(f"state is {shown(state)}, expected None or a list of LayerStates")
    if len(state) != layers:
        raise InputError(f"state has {len(state)} layers, the model has {layers}")
