"""Gradients for callers that ask a compiled module's ``bwd`` for them: the forward again, differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], dout: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)`` for an output's gradient.

    Args:
        function: of the inputs, in order.
        inputs: floating tensors; None for an absent one.
        dout: gradient of the result, of its shape.

    Returns:
        A gradient for each input, in its dtype; None for an absent one.
    """
    present = [tensor for tensor in inputs if tensor is not None]
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in present]
        given = iter(leaves)
        result = function(*(None if tensor is None else next(given) for tensor in inputs))
        found = iter(torch.autograd.grad(result, leaves, dout.to(result.dtype)))
    return [None if tensor is None else next(found) for tensor in inputs]
