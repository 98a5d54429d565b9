"""Gradients for callers that ask a compiled module's ``bwd`` for them: the forward again, differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def gradients(
    function: Callable[..., Any], inputs: Sequence[Tensor | None], *douts: Tensor | None
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)`` for its outputs' gradients.

    Args:
        function: of the inputs, in order; returns a tensor or a tuple of them.
        inputs: floating tensors; None for an absent one.
        douts: an output's gradient, of its shape, for each output; None for one that has none.

    Returns:
        A gradient for each input, in its dtype; None for an absent one, and for one that no output reads.
    """
    present = [tensor for tensor in inputs if tensor is not None]
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in present]
        given = iter(leaves)
        results = function(*(None if tensor is None else next(given) for tensor in inputs))
        if isinstance(results, Tensor):
            results = (results,)
        read = [
            (result, dout.to(result.dtype))
            for result, dout in zip(results, douts, strict=True)
            if dout is not None
        ]
        outputs, seeds = zip(*read, strict=True)
        found = iter(torch.autograd.grad(outputs, leaves, seeds, allow_unused=True))
    return [None if tensor is None else next(found) for tensor in inputs]
