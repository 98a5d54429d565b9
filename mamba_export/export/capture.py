"""A program as PyTorch's own graph: example inputs, tracing, and its long errors in one line."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mamba_export.contract.names import BATCH, LENGTH
from mamba_export.contract.program import Program, Value
from mamba_export.errors import ExportError, first_line
from mamba_export.export.dtypes import TORCH
from mamba_export.export.fixed import HOW_TO_VARY, check_derived_sizes
from mamba_export.export.user_code import FixedSizes, fixed_sizes, place

_SIZES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
"""Of example inputs, for axes other than batch and length."""

Axes = dict[int, Any]
"""Dynamic axes of a tensor: index, and a ``torch.export.Dim`` or hint."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's own notes (missing torchvision, renamed axes) from the user."""
    names = ("torch.onnx", "torch.export", "torch.fx", "torch.__trace", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def example_sizes(values: Sequence[Value]) -> dict[str, int]:
    """A size for each symbolic axis: above 1, which PyTorch specialises, and no two the same."""
    names = dict.fromkeys(size for value in values for size in value.shape if isinstance(size, str))
    others = iter(_SIZES)
    known = {BATCH: 2, LENGTH: 3}
    return {name: known[name] if name in known else next(others) for name in names}


def examples(program: Program) -> tuple[list[Tensor], list[Axes]]:
    """Zeros for each graph input of a program, and their dynamic axes."""
    values = [*program.inputs, *(state.past for state in program.states)]
    sizes = example_sizes(values)
    dims = {name: torch.export.Dim(name) for name in sizes}
    first = next(iter(program.module.parameters()), None)
    device = torch.device("cpu") if first is None else first.device
    tensors = [
        torch.zeros(value.resolve(sizes), dtype=TORCH[value.dtype], device=device)
        for value in values
    ]
    axes = [
        {axis: dims[size] for axis, size in enumerate(value.shape) if isinstance(size, str)}
        for value in values
    ]
    return tensors, axes


def trace(module: nn.Module, tensors: Sequence[Tensor], axes: Sequence[Axes]) -> Any:
    """PyTorch's graph of a module that takes positional tensors.

    Args:
        module: traced in eval mode, and left in the mode that it was in.
        tensors: examples; a dynamic axis has a size above 1.
        axes: dynamic axes of each.

    Returns:
        A ``torch.export.ExportedProgram``.

    Raises:
        ExportError: PyTorch cannot trace the module; one line with the cause.
    """
    fixed = FixedSizes()
    try:
        with (
            quiet(),
            torch.no_grad(),
            evaluating(module),
            fixed_sizes() as fixed,
            # A length of 0 or 1 takes the general path, not one of its own.
            torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        ):
            try:
                exported = _export(module, tensors, axes)
            except torch._dynamo.exc.UserError as error:
                bounded = _bounded(axes, str(error))
                if bounded is None:
                    raise
                exported = _export(module, tensors, bounded)
        check_derived_sizes(exported, axes, fixed)
        return exported
    except ExportError:
        raise
    except Exception as error:  # a module's forward may raise anything
        raise ExportError(f"PyTorch cannot trace the model: {_reason(error, fixed)}") from error


def _export(module: nn.Module, tensors: Sequence[Tensor], axes: Sequence[Axes]) -> Any:
    return torch.export.export(
        module,
        tuple(tensors),
        dynamic_shapes=_as_parameters(module, axes),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _bounded(axes: Sequence[Axes], text: str) -> list[Axes] | None:
    """The axes with the bounds that PyTorch suggests; None where it asks for more than bounds."""
    _, found, fixes = text.partition("Suggested fixes:")
    lines = [line.strip() for line in fixes.splitlines() if " = " in line]
    if not found or not lines:
        return None
    dims = {}
    for line in lines:
        fix = re.fullmatch(r"(\w+) = Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)", line)
        if fix is None:
            return None
        limits = {key: int(n) for key, n in zip(("min", "max"), fix.groups()[1:], strict=True) if n}
        dims[fix[1]] = torch.export.Dim(fix[1], **limits)
    return [
        {axis: dims.get(getattr(dim, "__name__", ""), dim) for axis, dim in of_one.items()}
        for of_one in axes
    ]


def _as_parameters(module: nn.Module, axes: Sequence[Axes]) -> tuple[Any, ...]:
    """The tensors' axes as PyTorch wants them: an entry a parameter of forward, ``*tensors`` being one."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(axes)
    count = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*axes[:count], tuple(axes[count:]))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in eval mode for a while; each of its submodules goes back to the mode that it was in."""
    wrapped = getattr(module, "wrapped", module)
    modes = [(part, part.training) for part in {*module.modules(), *wrapped.modules()}]
    module.eval()
    wrapped.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def input_shapes(exported: Any) -> list[tuple[Any, ...]]:
    """Shapes of the traced inputs: integers, and PyTorch's symbolic sizes where they are dynamic."""
    nodes = {node.name: node for node in exported.graph.nodes}
    return [tuple(nodes[name].meta["val"].shape) for name in exported.graph_signature.user_inputs]


def outputs(exported: Any) -> list[Tensor]:
    """The traced outputs, as tensors without memory behind them."""
    last = next(node for node in exported.graph.nodes if node.op == "output")
    names = set(exported.graph_signature.user_outputs)
    return [node.meta["val"] for node in last.args[0] if getattr(node, "name", None) in names]


def symbols(exported: Any, values: Sequence[Value]) -> dict[str, str]:
    """PyTorch's names of the dynamic sizes, and the program's.

    Raises:
        ExportError: a size that the program calls dynamic was fixed by the module.
    """
    names: dict[str, str] = {}
    for value, shape in zip(values, input_shapes(exported), strict=True):
        for axis, (size, found) in enumerate(zip(value.shape, shape, strict=True)):
            if isinstance(size, str):
                if isinstance(found, int):
                    raise ExportError(
                        f"the model fixes axis {axis} ({size}) of {value.name} to {found}: {HOW_TO_VARY}"
                    )
                names.setdefault(str(found), size)
                names.update(root_name(str(found), size))
    return names


def root_name(found: str, size: str) -> dict[str, str]:
    """Of a size such as "4*rows", PyTorch's symbol and the user's name of what is multiplied."""
    symbol, name = re.fullmatch(r"\d+\*(\w+)", found), re.fullmatch(r"\d+\*(\w+)", size)
    return {symbol[1]: name[1]} if symbol and name else {}


def renamed(text: str, names: Mapping[str, str]) -> str:
    """A symbolic size with the program's names in PyTorch's place."""
    return re.sub(r"\b[su]\d+\b", lambda match: names.get(match[0], match[0]), text)


def _reason(error: Exception, fixed: FixedSizes) -> str:
    """One line of what PyTorch says in many; ``fixed`` has the lines that fix a size to a number."""
    text = str(error)
    where = place(traceback.extract_tb(error.__traceback__))
    if "data-dependent" in text or type(error).__name__ == "GuardOnDataDependentSymNode":
        return (
            f"its control flow depends on the values of a tensor{where}: "
            "use torch.where or torch.cond, or take the branch outside"
        )
    named = re.search(
        r"You marked (\w+) as dynamic but .*?specialized it to be a constant \((\d+)\)", text
    )
    if named:
        line = fixed.lines.get(int(named[2]), "")
        return f"it fixes the axis {named[1]} to {named[2]}{line}: {HOW_TO_VARY}"
    multiple = re.search(r"^\s*(\w+) = (\d+)\*_\w+$", text, re.M)
    if multiple:
        name, factor = multiple.groups()
        return (
            f"it takes the axis {name} in multiples of {factor} alone{fixed.multiple}: give it as "
            f'{factor} * torch.export.Dim("{name}_by_{factor}"), or compute without a branch on the size'
        )
    bound = re.search(
        r"Not all values of (\w+) = (\S+) in .*? satisfy the generated guard (.+?)\.?$", text, re.M
    )
    if bound:
        name, guard = bound[1], bound[3].replace(bound[2], bound[1])
        limits = re.fullmatch(r"(\d+) <= .+ <= (\d+)", guard)
        if limits and limits[1] == limits[2]:
            line = fixed.lines.get(int(limits[1]), "")
            return f"it fixes the axis {name} to {limits[1]}{line}: {HOW_TO_VARY}"
        guard = guard.partition(f" and {name} <= IntInfinity")[0]
        return f"the axis {name} must satisfy {guard}: give its Dim a min and max, or compute otherwise"
    unexpected = re.search(r"Specializations unexpectedly required \(([^)]+)\)", text)
    if unexpected:
        line = fixed.converted[0][1] if fixed.converted else ""
        return f"it fixes {unexpected[1].replace(', ', ' and ')}{line}: {HOW_TO_VARY}"
    if "onstraints violated" in text:
        detail = re.search(r"^\s*- (.+)$", text, re.MULTILINE)
        what = detail[1] if detail else first_line(error)
        return f"its dynamic axes do not hold: {' '.join(what.split())}"
    return f"{first_line(error)}{where}"
