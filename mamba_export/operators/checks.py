"""Checks of a call's tensors against the contract's row: ranks, axes, dtypes, devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_export.contract import layout
from mamba_export.contract.names import LENGTH
from mamba_export.contract.spec import FP32, Operator, R, S, T
from mamba_export.operators.dtypes import accumulation_dtype

_MAX_REMEMBERED = 4096
_MAX_FLOAT = torch.finfo(torch.float32).max  # what the compiled kernels and the file hold


class Check:
    """Raises ValueError, in one line that names the tensor, unless the inputs of a call fit the row.

    What passed is remembered by shapes, dtypes and devices: a decoded token makes two calls a layer, and
    all of them look alike.
    """

    def __init__(self, spec: Operator) -> None:
        self._spec = spec
        self._sources = layout.size_sources(spec)
        self._typed = layout.dtype_source(spec, T)
        # The tensor that has the length is the sequence: others are said to differ from it.
        self._sequence = self._sources.get(LENGTH, (0, 0))[0]
        self._passed: set[tuple] = set()
        given = [one for one in spec.attributes if not one.derived]
        self._floats = [(i, one.name) for i, one in enumerate(given) if one.kind == "float"]
        self.reads_attributes = bool(self._floats)  # flags are PyTorch's to check

    def __call__(self, tensors: Sequence[Tensor | None]) -> None:
        """Check a call's inputs, in the row's order; None stands for an absent optional one."""
        key = tuple([None if t is None else (t.shape, t.dtype, t.device) for t in tensors])
        if key in self._passed:
            return
        self._check(tensors)
        if len(self._passed) >= _MAX_REMEMBERED:
            self._passed.clear()
        self._passed.add(key)

    def check_attributes(self, values: Sequence[Any]) -> None:
        """Check a call's attributes, in the row's order; those after the last have their defaults."""
        for index, name in self._floats:
            if index >= len(values) or not isinstance(value := values[index], float | int):
                continue  # the default, or a symbol of a traced graph
            if not 0 <= value <= _MAX_FLOAT:
                raise ValueError(
                    f"{self._spec.torch_name}: {name} is {value}, expected a finite number of at least 0"
                )

    def check_fake(self, tensors: Sequence[Tensor | None]) -> None:
        """What is known of tensors without data: all of it, but where a traced size is a symbol."""
        if all(type(size) is int for t in tensors if t is not None for size in t.shape):
            self(tensors)
        else:
            self.check_ranks(tensors)

    def _check(self, tensors: Sequence[Tensor | None]) -> None:
        sizes = self._sizes(tensors)
        dtypes = self._dtypes(tensors)
        name = self._spec.torch_name
        device = self._present(tensors, self._sequence).device
        for row, tensor in zip(self._spec.inputs, tensors, strict=True):
            if tensor is None:
                continue
            shape = row.shape(sizes)
            if tensor.shape != shape:
                raise ValueError(
                    f"{name}: {row.name} has shape {tuple(tensor.shape)}, expected {shape}"
                )
            if tensor.dtype not in dtypes[row.dtype]:
                expected = " or ".join(map(str, dtypes[row.dtype]))
                raise ValueError(f"{name}: {row.name} is {tensor.dtype}, expected {expected}")
            if tensor.device != device:
                raise ValueError(
                    f"{name}: {row.name} is on {tensor.device} and the sequence on {device}: "
                    "move them to one device"
                )

    def check_ranks(self, tensors: Sequence[Tensor | None]) -> None:
        """The part that holds where sizes are symbols: the number of axes, and that inputs are there."""
        name, spec = self._spec.torch_name, self._spec
        for index, row in enumerate(
            spec.inputs
        ):  # PyTorch lets None through where it wants a tensor
            if not row.is_optional:
                self._present(tensors, index)
        givers = {index for index, _ in self._sources.values()} - {self._sequence}
        for index in (self._sequence, *sorted(givers)):
            tensor, row = self._present(tensors, index), spec.inputs[index]
            if tensor.dim() == len(row.axes):
                continue
            if index == self._sequence:
                raise ValueError(
                    f"{name}: {row.name} has {tensor.dim()} dimensions, expected {row.layout}"
                )
            raise ValueError(
                f"{name}: {row.name} has shape {tuple(tensor.shape)}, expected {row.layout}"
            )

    def _present(self, tensors: Sequence[Tensor | None], index: int) -> Tensor:
        tensor = tensors[index]
        if tensor is None:
            raise ValueError(f"{self._spec.torch_name}: {self._spec.inputs[index].name} is missing")
        return tensor

    def _sizes(self, tensors: Sequence[Tensor | None]) -> dict[str, int]:
        """The number of every size, from the tensors that have it as an axis."""
        name, spec = self._spec.torch_name, self._spec
        self.check_ranks(tensors)
        sizes = {
            size: self._present(tensors, index).shape[axis]
            for size, (index, axis) in self._sources.items()
        }
        for size, (index, _) in self._sources.items():
            row = spec.inputs[index]
            if sizes[size] > 0:
                continue
            if size == LENGTH:
                raise ValueError(
                    f"{name}: {row.name} has length 0; a sequence needs at least one step"
                )
            if index != self._sequence:  # no batch or no channels: the result is empty
                shape = tuple(self._present(tensors, index).shape)
                raise ValueError(
                    f"{name}: {row.name} has shape {shape}, expected {row.layout} "
                    f"with {size} of at least 1"
                )
        for one in spec.sizes:
            if one.divides is not None and sizes[one.divides] % sizes[one.name]:
                giver = spec.inputs[self._sources[one.name][0]].name
                raise ValueError(
                    f"{name}: {one.name} {sizes[one.name]} (from {giver}) does not divide "
                    f"{one.divides} {sizes[one.divides]}"
                )
        return spec.with_products(sizes)

    def _dtypes(self, tensors: Sequence[Tensor | None]) -> dict[str, tuple[torch.dtype, ...]]:
        """The dtypes that each class may have beside that of T."""
        tensor = self._present(tensors, self._typed)
        if not tensor.is_floating_point():
            name = self._spec.inputs[self._typed].name
            raise ValueError(
                f"{self._spec.torch_name}: {name} is {tensor.dtype}, expected a floating dtype"
            )
        low, wide = tensor.dtype, accumulation_dtype(tensor.dtype)
        chosen = (wide, low) if low != wide else (wide,)
        return {T: (low,), FP32: (wide,), R: chosen, S: chosen}
