"""The truth of a file with packed weights: the source with the matrices that the file's codes stand for.

The source itself stays as it is. Its products are met where PyTorch computes them, so a matrix that is the
embedding as well is packed in the product alone, as in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mamba_export.contract.weights import PARTS, Weights, packed_name
from mamba_export.packing import Packed, unpack

_INPUT_LEVELS = 127
"""ONNX Runtime's CPU provider rounds the inputs of a product with packed weights to so many steps on each side
of 0, in blocks of the weights' length (its ``accuracy_level`` 4, the usual one)."""


def packed_of(initializers: Mapping[str, ir.Value], parameter: str) -> Packed | None:
    """The packed matrix of a parameter in a file; None where it has none."""
    parts = [initializers.get(packed_name(parameter, part)) for part in PARTS]
    codes, scales, zero_points = (
        None if part is None or part.const_value is None else part.const_value.numpy()
        for part in parts
    )
    return None if codes is None or scales is None else Packed(codes, scales, zero_points)


@dataclass(frozen=True)
class PackedMatrices:
    """The packed matrices of a file, by parameter's name.

    block: their blocks' length.
    """

    matrices: Mapping[str, Packed]
    block: int

    @classmethod
    def read(
        cls, initializers: Mapping[str, ir.Value], model: nn.Module, weights: Weights
    ) -> PackedMatrices:
        """Those of a model's parameters in a file."""
        names = (name for name, _ in model.named_parameters())
        found = {name: packed_of(initializers, name) for name in names}
        return cls({name: one for name, one in found.items() if one is not None}, weights.block)

    def products(self, model: nn.Module, *, rounds_inputs: bool = False) -> PackedProducts:
        """Context in which a model's products take these matrices; see ``PackedProducts``."""
        return PackedProducts(model, self.matrices, self.block if rounds_inputs else None)


class PackedProducts(TorchFunctionMode):
    """Context in which PyTorch's products take packed matrices in place of a model's own.

    Args:
        model: whose parameters are meant.
        matrices: by parameter's name; unpacked at every product, which spares memory.
        block: round the inputs of these products as a runtime may that computes with integers, in blocks of
            this length; None leaves them exact.
    """

    def __init__(
        self, model: nn.Module, matrices: Mapping[str, Packed], block: int | None = None
    ) -> None:
        super().__init__()
        parameters = dict(model.named_parameters())
        self._matrices = [(parameters[name], matrix) for name, matrix in matrices.items()]
        self._block = block

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Any call of PyTorch's; ``linear`` of a packed parameter is changed."""
        if function is nn.functional.linear:
            for parameter, matrix in self._matrices:
                if args[1] is parameter:
                    x = args[0] if self._block is None else rounded(args[0], self._block)
                    weight = torch.from_numpy(unpack(matrix).T).to(x.dtype)
                    args = (x, weight, *args[2:])
                    break
        return function(*args, **(kwargs or {}))


def rounded(x: Tensor, block: int) -> Tensor:
    """The inputs (..., K) of a product as integers in blocks stand for them."""
    blocks = x.unflatten(-1, (-1, block))
    scales = blocks.abs().amax(-1, keepdim=True) / _INPUT_LEVELS
    codes = torch.round(blocks / torch.where(scales > 0, scales, 1))
    return (codes * scales).flatten(-2)
