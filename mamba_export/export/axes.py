"""Dynamic axes as a user declares them (``torch.export``'s dynamic_shapes, or names), and examples that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_export import given as user
from mamba_export.errors import ExportError
from mamba_export.export.capture import Axes

_SIZES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
"""Of example inputs, where the user's own size is 0 or 1, which PyTorch would take for a constant."""
_GROWING = "past"
"""Name of the axis of a growing state that the user has given none."""

DynamicShapes = Mapping[str, Any] | Sequence[Any] | None


def declared_axes(
    arguments: Mapping[str, Tensor], dynamic_shapes: DynamicShapes, grows: Mapping[str, int]
) -> dict[str, Axes]:
    """Dynamic axes of each argument: index, and a ``torch.export.Dim`` or hint.

    Args:
        arguments: example tensors by argument name, in forward's order.
        dynamic_shapes: by argument name, or in order; of each argument a dict from axis, or a sequence over its
            axes, to a ``torch.export.Dim``, ``Dim.DYNAMIC``, a name, or None.
        grows: the axis along which an argument grows, by argument name; it is dynamic in any case.

    Raises:
        ExportError: dynamic_shapes names an argument that there is not, an axis that it has not, or something
            else than a Dim or a name.
    """
    by_name = _by_name(arguments, dynamic_shapes)
    dims: dict[str, Any] = {}
    axes: dict[str, Axes] = {}
    for name, tensor in arguments.items():
        given = _by_axis(name, tensor, by_name.get(name))
        if name in grows:
            given.setdefault(grows[name], _GROWING)
        axes[name] = {}
        for axis, spec in given.items():
            dim = _dim(name, axis, spec, dims)
            if dim is not None:
                axes[name][axis] = dim
    return axes


def axis_name(argument: str, axis: int, dim: Any) -> str:
    """What a dynamic axis is called in the file: its Dim's name, or the argument's and the axis'."""
    return str(getattr(dim, "__name__", f"{argument}_axis{axis}"))


def fitting_examples(arguments: Mapping[str, Tensor], axes: Mapping[str, Axes]) -> list[Tensor]:
    """The example tensors, with another size where a dynamic axis has size 0 or 1.

    Raises:
        ExportError: two arguments have different sizes for an axis of one name.
    """
    sizes: dict[str, int] = {}
    owners: dict[str, str] = {}
    for name, tensor in arguments.items():
        for axis, dim in axes[name].items():
            label, size = axis_name(name, axis, dim), tensor.shape[axis]
            if sizes.setdefault(label, size) != size:
                raise ExportError(
                    f"arguments {owners[label]} and {name} disagree about the axis {label}: "
                    f"{sizes[label]} and {size}"
                )
            owners.setdefault(label, name)
    chosen: dict[str, int] = {}
    examples = []
    for name, tensor in arguments.items():
        for axis, dim in axes[name].items():
            label = axis_name(name, axis, dim)
            if sizes[label] > 1:
                continue
            if label not in chosen:
                minimum = max(2, getattr(dim, "min", 2) or 2)
                used = {*sizes.values(), *chosen.values()}
                chosen[label] = next((s for s in _SIZES if s >= minimum and s not in used), minimum)
            tensor = _resized(tensor, axis, chosen[label])
        examples.append(tensor)
    return examples


def _resized(tensor: Tensor, axis: int, size: int) -> Tensor:
    """The tensor with another size along an axis: its own values, repeated; zeros where it has none."""
    if tensor.shape[axis] == 0:
        shape = list(tensor.shape)
        shape[axis] = size
        return tensor.new_zeros(shape)
    index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
    return tensor.index_select(axis, index)


def _by_name(arguments: Mapping[str, Tensor], given: DynamicShapes) -> dict[str, Any]:
    names = list(arguments)
    if given is None:
        return {}
    if isinstance(given, Mapping):
        for name in given:
            if name not in arguments:
                raise ExportError(
                    f"dynamic_shapes names {name}, and forward's arguments are {', '.join(names)}"
                )
        return dict(given)
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise ExportError(
            f"dynamic_shapes is {user.shown(given)}: give a mapping by argument, or a sequence in order"
        )
    if len(given) > len(names):
        raise ExportError(
            f"dynamic_shapes has {len(given)} entries, and forward has {len(names)} arguments"
        )
    return dict(zip(names, given, strict=False))


def _by_axis(name: str, tensor: Tensor, given: Any) -> dict[int, Any]:
    if given is None:
        return {}
    if not isinstance(given, (Mapping, Sequence)) or isinstance(given, (str, bytes)):
        raise ExportError(
            f"dynamic_shapes of {name} is {user.shown(given)}: give a dict from axis to a Dim or a name"
        )
    entries = dict(given) if isinstance(given, Mapping) else dict(enumerate(given))
    for axis in entries:
        if type(axis) is not int or not 0 <= axis < tensor.dim():
            raise ExportError(
                f"dynamic_shapes has an axis {axis} of {name}, whose shape is {tuple(tensor.shape)}"
            )
    return entries


def _dim(name: str, axis: int, spec: Any, dims: dict[str, Any]) -> Any:
    if spec is None or isinstance(spec, int) or spec == torch.export.Dim.STATIC:
        return None
    if isinstance(spec, str):
        if not spec.isidentifier():
            raise ExportError(f"dynamic_shapes: {spec!r} is not a valid name for an axis of {name}")
        return dims.setdefault(spec, torch.export.Dim(spec))
    if hasattr(spec, "__name__"):
        return dims.setdefault(spec.__name__, spec)
    if spec in (torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO):
        return spec
    raise ExportError(
        f"dynamic_shapes: axis {axis} of {name} is {spec!r}: give a torch.export.Dim, Dim.DYNAMIC or a name"
    )
