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

from mamba_export.contract.weights import PARTS, ROW_PARTS, Weights, packed_name
from mamba_export.packing import Packed, unpack

_INPUT_LEVELS = 127
"""ONNX Runtime's CPU provider rounds the inputs of a product with packed weights to so many steps on each side
of 0, in blocks of the weights' length (its ``accuracy_level`` 4, the usual one)."""


def packed_of(initializers: Mapping[str, ir.Value], name: str, parameter: Tensor) -> Packed | None:
    """The packed matrix of a parameter (outputs, inputs) in a file; None where it has none.

    A head may be stored with more columns than the outputs, whose results the file takes off.
    """
    if parameter.ndim != 2:
        return None
    outputs = len(parameter)
    parts = [initializers.get(packed_name(name, part)) for part in PARTS]
    codes, scales, zero_points = (
        None if part is None or part.const_value is None else part.const_value.numpy()[:, :outputs]
        for part in parts
    )
    return None if codes is None or scales is None else Packed(codes, scales, zero_points)


def packed_rows_of(initializers: Mapping[str, ir.Value], parameter: str) -> Packed | None:
    """The packed embedding (width, rows) of a parameter in a file; None where it has none."""
    parts = [initializers.get(packed_name(parameter, part)) for part in ROW_PARTS]
    arrays = [part.const_value.numpy().T for part in parts if part and part.const_value is not None]
    return Packed(arrays[0], arrays[1], None) if len(arrays) == len(ROW_PARTS) else None


@dataclass(frozen=True)
class PackedMatrices:
    """The packed matrices of a file, by parameter's name.

    matrices: of products. embeddings: (width, rows). block: their blocks' length.
    """

    matrices: Mapping[str, Packed]
    embeddings: Mapping[str, Packed]
    block: int

    @classmethod
    def read(
        cls, initializers: Mapping[str, ir.Value], model: nn.Module, weights: Weights
    ) -> PackedMatrices:
        """Those of a model's parameters in a file."""
        matrices, embeddings = {}, {}
        for name, parameter in model.named_parameters():
            if (matrix := packed_of(initializers, name, parameter)) is not None:
                matrices[name] = matrix
            if (rows := packed_rows_of(initializers, name)) is not None:
                embeddings[name] = rows
        return cls(matrices, embeddings, weights.block)

    def products(self, model: nn.Module, *, rounds_inputs: bool = False) -> PackedProducts:
        """Context in which a model's products take these matrices; see ``PackedProducts``."""
        return PackedProducts(model, self, rounds_inputs)


class PackedProducts(TorchFunctionMode):
    """Context in which PyTorch's products take packed matrices in place of a model's own.

    Args:
        model: whose parameters are meant.
        packed: unpacked at every product, which spares memory.
        rounds_inputs: round the inputs of these products as a runtime may that computes with integers, in
            blocks of the weights' length.
    """

    def __init__(self, model: nn.Module, packed: PackedMatrices, rounds_inputs: bool) -> None:
        super().__init__()
        parameters = dict(model.named_parameters())
        self._matrices = [(parameters[name], one) for name, one in packed.matrices.items()]
        self._embeddings = [(parameters[name], one) for name, one in packed.embeddings.items()]
        self._block = packed.block if rounds_inputs else None

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Any call of PyTorch's; those that take a packed parameter are changed."""
        if function is nn.functional.linear:
            matrix = _of(args[1], self._matrices)
            if matrix is not None:
                x = args[0] if self._block is None else rounded(args[0], self._block)
                args = (x, torch.from_numpy(unpack(matrix).T).to(x.dtype), *args[2:])
        elif function is nn.functional.embedding:
            rows = _of(args[1], self._embeddings)
            if rows is not None:
                args = (args[0], torch.from_numpy(unpack(rows).T).to(args[1].dtype), *args[2:])
        return function(*args, **(kwargs or {}))


def _of(parameter: Tensor, packed: Sequence[tuple[Tensor, Packed]]) -> Packed | None:
    return next((one for known, one in packed if known is parameter), None)


def rounded(x: Tensor, block: int) -> Tensor:
    """The inputs (..., K) of a product as integers in blocks stand for them."""
    blocks = x.unflatten(-1, (-1, block))
    scales = blocks.abs().amax(-1, keepdim=True) / _INPUT_LEVELS
    codes = torch.round(blocks / torch.where(scales > 0, scales, 1))
    return (codes * scales).flatten(-2)
