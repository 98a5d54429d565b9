"""``define``: a torch operator from a definition: schema, checks, fake kernel, autocast, gradients.

It works under autograd, autocast, torch.compile and torch.export. The implementation is chosen a call (see
``dispatch``); gradients need the inputs alone, so that forward and backward may be of two implementations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_export.contract import DOMAIN, layout
from mamba_export.contract.spec import FP32, Operator
from mamba_export.operators.autocast import register_autocast
from mamba_export.operators.checks import Check
from mamba_export.operators.definition import (
    Implementations,
    OperatorDefinition,
    register,
    unregister,
)
from mamba_export.operators.dispatch import choose_backend
from mamba_export.operators.dtypes import accumulation_dtype

_LIBRARIES: dict[str, torch.library.Library] = {}
"""Keeps the torch operators' libraries alive: PyTorch removes an operator when its library is collected."""


def define(definition: OperatorDefinition) -> None:
    """Make ``torch.ops.mamba_export.<torch_name>``, and its ``_backward`` where there are gradients.

    The operator then is in the registry that export, verify and the benchmarks read.

    As ``torch.library.custom_op`` does, without the check for aliased outputs that it makes at each call:
    that takes 3 us, and a decoded token makes two calls a layer. ``opcheck`` in the tests looks for them.

    Raises:
        ValueError: an operator of this name is there already.
    """
    spec = definition.spec
    register(definition)
    library = _LIBRARIES[spec.name] = torch.library.Library(DOMAIN, "FRAGMENT")
    check = Check(spec)
    forward, fake = _forward(definition, check), _fake(spec, check)
    _add(library, spec.torch_name, _schema(spec), forward, fake)
    if definition.backward:
        name = f"{spec.torch_name}_backward"
        _add(library, name, _backward_schema(spec), _backward(definition), _fake_backward(spec))
        _register_autograd(library, spec)
    register_autocast(library, spec, getattr(getattr(torch.ops, DOMAIN), spec.torch_name).default)


def withdraw(definition: OperatorDefinition) -> None:
    """Undo ``define``: for tests that define operators of their own."""
    unregister(definition)
    _LIBRARIES.pop(definition.spec.name)._destroy()


def _add(library: torch.library.Library, name: str, schema: str, run: Any, fake: Any) -> None:
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{DOMAIN}::{name}", fake, lib=library)


def _arguments(spec: Operator, *, defaults: bool) -> list[str]:
    arguments = [
        f"Tensor{'?' if tensor.is_optional else ''} {tensor.name}" for tensor in spec.inputs
    ]
    for attribute in spec.attributes:
        if not attribute.derived:
            kind = "bool" if attribute.kind == "flag" else attribute.kind
            default = f"={attribute.default}" if defaults else ""
            arguments.append(f"{kind} {attribute.name}{default}")
    return arguments


def _results(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def _schema(spec: Operator) -> str:
    return f"({', '.join(_arguments(spec, defaults=True))}) -> {_results(len(spec.outputs))}"


def _backward_schema(spec: Operator) -> str:
    gradients = [f"Tensor d{tensor.name}" for tensor in spec.outputs]
    arguments = ", ".join(gradients + _arguments(spec, defaults=False))
    return f"({arguments}) -> {_results(len(spec.inputs))}"


def _forward(definition: OperatorDefinition, check: Check) -> Any:
    spec = definition.spec
    typed, count = layout.dtype_source(spec), len(spec.inputs)
    defaults = tuple(one.default for one in spec.attributes if not one.derived)
    takes = definition.native_takes
    has_native = "native" in definition.forward
    functions = Implementations({"reference": definition.reference, **definition.forward})

    def forward(*args: Any) -> Any:
        tensors = args[:count]
        check(tensors)
        if check.reads_attributes:
            check.check_attributes(args[count:])
        typed_tensor = args[typed]
        native = has_native and (takes is None or takes(*tensors))
        native = native and typed_tensor.device.type in spec.kernels
        backend = choose_backend(typed_tensor, native_takes=native)
        if backend != "native":
            tensors = _with_zeros(spec, tensors)
        # PyTorch leaves out what has its default's value, from the end on.
        return functions[backend](*tensors, *args[count:], *defaults[len(args) - count :])

    return forward


def _with_zeros(spec: Operator, tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """A call's inputs, with zeros for those that None stands for zeros of: only compiled kernels need none."""
    if all(
        tensor is not None or not row.null_is_zeros
        for row, tensor in zip(spec.inputs, tensors, strict=True)
    ):
        return tensors
    typed = tensors[layout.dtype_source(spec)]
    assert typed is not None
    dtype, sizes = accumulation_dtype(typed.dtype), layout.sizes_of(spec, tensors)
    return tuple(
        typed.new_zeros(row.shape(sizes), dtype=dtype)
        if tensor is None and row.null_is_zeros
        else tensor
        for row, tensor in zip(spec.inputs, tensors, strict=True)
    )


def _fake(spec: Operator, check: Check) -> Any:
    typed = layout.dtype_source(spec)
    count = len(spec.inputs)

    def fake(*args: Any) -> Any:
        check.check_fake(args[:count])
        check.check_attributes(args[count:])
        sizes = layout.sizes_of(spec, args)
        outputs = []
        for output in spec.outputs:
            like, wide = args[_followed(spec, output, typed)], accumulation_dtype(args[typed].dtype)
            dtype = wide if output.dtype == FP32 or like is None else like.dtype
            outputs.append(args[typed].new_empty(output.shape(sizes), dtype=dtype))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return fake


def _followed(spec: Operator, output: Any, typed: int) -> int:
    """Index of the input whose dtype an output has; ``typed`` where none is of its shape and class."""
    for index, tensor in enumerate(spec.inputs):
        if tensor.dtype == output.dtype and tensor.axes == output.axes and tensor.without is None:
            return index
    return typed


def _backward(definition: OperatorDefinition) -> Any:
    spec = definition.spec
    first, typed = len(spec.outputs), layout.dtype_source(spec)
    after = first + len(spec.inputs)
    functions = Implementations(definition.backward)

    def backward(*args: Any) -> Any:
        tensor = args[first + typed]
        # What is compiled has no gradients; the reference's are those of the vectorised path.
        backend = choose_backend(tensor, native_takes=False)
        inputs = args[first:after]
        gradients = functions["cpu" if backend == "reference" else backend](
            *args[:first], *_with_zeros(spec, inputs), *args[after:]
        )
        # An operator returns tensors only: a zero-sized one stands for an absent input's gradient.
        return tuple(
            tensor.new_empty(0) if one is None else gradient
            for one, gradient in zip(inputs, gradients, strict=True)
        )

    return backward


def _fake_backward(spec: Operator) -> Any:
    first, count = len(spec.outputs), len(spec.inputs)

    def fake(*args: Any) -> Any:
        tensors = args[first : first + count]
        return tuple(args[0].new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)

    return fake


def _register_autograd(library: torch.library.Library, spec: Operator) -> None:
    count = len(spec.inputs)
    operator = getattr(getattr(torch.ops, DOMAIN), f"{spec.torch_name}_backward")

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.attributes = inputs[count:]

    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        tensors = ctx.saved_tensors
        found = operator(*gradients, *tensors, *ctx.attributes)
        return (
            *(None if t is None else d for t, d in zip(tensors, found, strict=True)),
            *(None for _ in ctx.attributes),
        )

    torch.library.register_autograd(
        f"{DOMAIN}::{spec.torch_name}", backward, setup_context=setup_context, lib=library
    )
