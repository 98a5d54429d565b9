"""The truth of whole models: the source in PyTorch, in float64, on the operators' references.

Nothing that is judged takes part: inside ``forced("reference")`` every operator runs its definition, a loop
over time in plain PyTorch, whatever is installed. What is outside of the operators (projections, norms) is
PyTorch's own. The same-dtype reference, whose rounding the bounds follow, is computed the same way.

A reference takes about 0.1 ms a step and layer of a small model, and 1 ms with 1536 channels: an answer is
computed once and kept for every backend.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mamba_export.contract.program import Program
from mamba_export.errors import first_line
from mamba_export.export.dtypes import TORCH
from mamba_export.export.torch_run import run_program
from mamba_export.folder.metadata import Metadata
from mamba_export.memory import available_memory
from mamba_export.models import MambaBackbone, MambaLM, cast
from mamba_export.operators.dispatch import forced
from mamba_export.verify.bounds import relative_error
from mamba_export.verify.packed import PackedMatrices, PackedProducts

_MAX_KEPT = 1 << 30
"""Bytes of answers that are kept for the next backend; what is beyond is computed again."""


Result = dict[str, np.ndarray]
"""Arrays, fp32 or wider, by what they are: states first, so that the first difference names the first layer."""

_STATE_OF_A_LAYER = re.compile(r"past_key_values\.(\d+)\.(\w+)_state")


def name_result(
    program: Program | Metadata, outputs: Mapping[str, np.ndarray], states: Sequence[np.ndarray]
) -> Result:
    """Outputs by name and states in order as one result."""
    result = {}
    for state, array in zip(program.states, states, strict=True):
        layer = _STATE_OF_A_LAYER.fullmatch(state.past.name)
        result[f"layer {layer[1]} {layer[2]} state" if layer else f"state {state.name}"] = array
    for name, array in outputs.items():
        result["output" if len(outputs) == 1 else f"output {name}"] = array
    return result


def is_finite(result: Result) -> bool:
    """Whether no value overflowed or is NaN."""
    return all(bool(np.isfinite(array).all()) for array in result.values())


@dataclass(frozen=True, eq=False)
class Question:
    """Inputs of a program by name, from ``states`` (in order) or from the start; floats in fp32."""

    inputs: dict[str, np.ndarray]
    states: Sequence[np.ndarray] | None = None


@dataclass(frozen=True)
class Answer:
    """The exact result, and what the file's dtype alone costs.

    rounding: relative error of the same-dtype reference, by tensor's name; zeros for fp32.
    survives: whether the same-dtype reference stays finite.
    """

    exact: Result
    rounding: dict[str, float]
    survives: bool


class Reference:
    """A model on the operators' references.

    Args:
        model: in the dtype that it is to have.
        program: of it; its module holds the model.
        wide: dtype that the module takes floats in; None for the program's own.
        products: context in which the products take the file's packed matrices; None for the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        program: Program,
        wide: torch.dtype | None,
        products: PackedProducts | None = None,
    ) -> None:
        self.model = model
        self.program = program
        self.wide = wide
        self.products = products

    def run(self, question: Question, *, unpacked: bool = False) -> Result:
        """The whole sequence at once; ``unpacked`` with the model's own matrices, whatever the file holds."""
        program = self.program
        inputs = {
            value.name: torch.from_numpy(question.inputs[value.name]).to(TORCH[value.dtype])
            for value in program.inputs
        }
        states = None
        if question.states is not None:
            states = [
                torch.from_numpy(array).to(TORCH[state.past.dtype])
                for array, state in zip(question.states, program.states, strict=True)
            ]
        products = contextlib.nullcontext() if unpacked else self.products
        with forced("reference"), products or contextlib.nullcontext():
            outputs, after = run_program(program, inputs, states, wide=self.wide)
        arrays = {name: _array(tensor) for name, tensor in outputs.items()}
        return name_result(program, arrays, [_array(tensor) for tensor in after])


def _array(tensor: Tensor) -> np.ndarray:
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


@dataclass
class Truth:
    """Answers to questions about a model, each computed once as far as memory goes.

    Args:
        exact: the source in float64, or in fp32 where float64 does not fit.
        same_dtype: the source in the file's dtype, whose products round their inputs where the file's matrices
            are packed; None for fp32 without, whose bounds need none.
        words: which truth it is, for the report.
        narrow: makes ``exact`` again in fp32, for a module that does not run in float64; None where it must.
    """

    exact: Reference
    same_dtype: Reference | None
    words: str
    narrow: Callable[[], Reference] | None = None
    _kept: dict[Question, Answer] = field(default_factory=dict)
    _kept_bytes: int = 0
    _unpacked: tuple[Question, Result] | None = None

    def answer(self, question: Question) -> Answer:
        """What the model makes of a question."""
        if question in self._kept:
            return self._kept[question]
        exact = self._exact_run(question)
        if self.same_dtype is None:
            answer = Answer(exact, dict.fromkeys(exact, 0.0), is_finite(exact))
        else:
            same = self.same_dtype.run(question)
            rounding = {name: relative_error(same[name], array) for name, array in exact.items()}
            answer = Answer(exact, rounding, is_finite(same))
        size = sum(array.nbytes for array in exact.values())
        if self._kept_bytes + size <= _MAX_KEPT:
            self._kept[question] = answer
            self._kept_bytes += size
        return answer

    def unpacked(self, question: Question) -> Result:
        """What the source makes of a question with its own matrices, whatever the file holds."""
        if self._unpacked is None or self._unpacked[0] is not question:
            self._unpacked = question, self.exact.run(question, unpacked=True)
        return self._unpacked[1]

    def draws(self, question: Question) -> bool:
        """Whether two runs of the source on one question differ."""
        first, second = self._exact_run(question), self._exact_run(question)
        return any(not np.array_equal(first[name], second[name], equal_nan=True) for name in first)

    def change(self, question: Question, share: float) -> float:
        """Relative change of the result where every float of the inputs changes by a share of the largest."""
        rng = np.random.default_rng(0)

        def changed(array: np.ndarray) -> np.ndarray:
            if array.dtype.kind in "iub":
                return array
            size = np.float32(share * (float(np.abs(array).max(initial=0.0)) or 1.0))
            return array + size * rng.standard_normal(array.shape, dtype=np.float32)

        inputs = {name: changed(array) for name, array in question.inputs.items()}
        exact, found = (
            self.answer(question).exact,
            self._exact_run(Question(inputs, question.states)),
        )
        return max(relative_error(found[name], array) for name, array in exact.items())

    def _exact_run(self, question: Question) -> Result:
        """In float64; from the first question that the module takes in fp32 alone on, in fp32."""
        try:
            return self.exact.run(question)
        except Exception as error:  # a user's module may raise anything
            if self.narrow is None:
                raise
            narrow = self.narrow()
            try:
                result = narrow.run(question)
            except Exception:
                raise error from None  # it refuses the question in any dtype
            self.exact, self.narrow = narrow, None
            self.words = (
                f"PyTorch in fp32 (the module does not run in float64: {first_line(error)})"
            )
            return result


MakeProgram = Callable[[nn.Module], Program]
"""From a model in a dtype that a file may have."""


CastCopy = Callable[[nn.Module, torch.dtype], nn.Module]
"""A copy of a model in another dtype, as the exporter makes it."""


def cast_own(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Of a model of this package; a user's module has the dtype of the file already."""
    duplicate: Any = copy.deepcopy(model)
    if isinstance(model, MambaLM | MambaBackbone):
        cast(duplicate, dtype)
    return duplicate


def make_truth(
    source: nn.Module,
    dtype: str,
    program: MakeProgram,
    *,
    owned: bool,
    cast_copy: CastCopy = cast_own,
    packed: PackedMatrices | None = None,
) -> Truth:
    """The truth of a model.

    Args:
        source: on the CPU; a model of this package in fp32, a user's module as it was exported.
        dtype: of the exported file.
        program: makes the program of the source and of its copies.
        owned: the source may be changed; False makes copies of it.
        cast_copy: of the source.
        packed: the matrices that the file's products take; None where they are the source's own.
    """

    def products(model: nn.Module, rounds_inputs: bool = False) -> PackedProducts | None:
        return None if packed is None else packed.products(model, rounds_inputs=rounds_inputs)

    same_dtype = None
    if dtype != "fp32" or packed is not None:
        low = cast_copy(source, TORCH[dtype])
        same_dtype = Reference(low, program(low), None, products(low, rounds_inputs=True))
    needed = 8 * sum(parameter.numel() for parameter in source.parameters())
    free = available_memory()
    if free is not None and needed > free:
        words = f"PyTorch in fp32 (float64 needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free)"
        wide, width = (source if dtype == "fp32" else copy.deepcopy(source).float()), torch.float32
    else:
        words, width = "PyTorch in float64", torch.float64
        wide = source if owned else copy.deepcopy(source)
    made = program(wide)  # of a dtype that a file may have: before the model is wider than that

    def narrow() -> Reference:
        fp32 = copy.deepcopy(source).float()
        return Reference(fp32, program(fp32), torch.float32, products(fp32))

    of_others = not (owned or isinstance(source, MambaLM | MambaBackbone))
    return Truth(
        Reference(wide.to(width), made, width, products(wide)),
        same_dtype,
        words,
        narrow if of_others and width == torch.float64 else None,
    )
