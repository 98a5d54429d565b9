"""Whole programs: a session of any backend against the source in PyTorch, states included."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mamba_export import contract
from mamba_export.contract.names import BATCH, LENGTH
from mamba_export.contract.program import Value, split_axis
from mamba_export.errors import ExportError, first_line
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import Metadata
from mamba_export.verify.bounds import FP32_BOUND, Check, bound, compare, worst
from mamba_export.verify.truth import Question, Result, Truth, name_result

_SPLIT_LENGTH = 130
_SPLITS = {
    "token by token, then 64": (*[1] * 66, 64),
    "two halves": (65, 65),
    "awkward parts": (63, 1, 2, 64),
}
_LARGE_STATES = (100.0, 10.0, 1.0)
"""Standard deviations of the initial states in the extreme case: the first that the dtype itself survives."""
_REPEATED = 200
"""Times that one token is repeated in the extreme case."""
_OTHER_SIZES = (1, 2, 17)
"""Of symbolic axes that are neither batch nor length."""
_USUAL_SIZE = 5
_USUAL_OTHER_SIZES = (_USUAL_SIZE, 17, 64, 224)
"""Of those axes while another varies: the first that the module takes, which may need an image of some size."""
_GROWN = 7
"""Steps that a growing state has read in the extreme case."""
_INTEGERS = 2
"""Integers that are no tokens are drawn below this: 0 and 1 are indices of nearly anything."""
_ROUNDING = 1e-6
"""Relative change of inputs that a module must not magnify beyond the bound, for an extreme to be judged."""
_DRAWS = (
    "two runs of the module itself on one input differ: it draws random numbers in eval mode, and there is no "
    "truth to compare with"
)


@dataclass(frozen=True)
class Case:
    """A question that a backend is asked, in one call or in parts.

    what: name of the check. parts: lengths of the calls that the sequence is cut into; None for one call.
    """

    what: str
    question: Question
    parts: Sequence[int] | None = None


@dataclass
class Comparison:
    """One backend's session, compared with the truth.

    Args:
        backend: name for the report.
        session: the backend's session on the exported folder.
        truth: of the source model.
        metadata: of the folder.
    """

    backend: str
    session: Any
    truth: Truth
    metadata: Metadata

    def run(self, question: Question, parts: Sequence[int] | None) -> Result:
        """What the session makes of a question, in one call or in parts."""
        states = question.states
        state = None if states is None else self.session.state_from_numpy(states)
        found: list[dict[str, np.ndarray]] = []
        for inputs in self._cut(question, parts):
            outputs, state = self.session.run(inputs, state)
            if not isinstance(outputs, dict):
                outputs = {self.metadata.outputs[0].name: outputs}
            found.append({name: np.asarray(array, np.float32) for name, array in outputs.items()})
        assert state is not None
        joined = {}
        for value in self.metadata.outputs:
            pieces = [outputs[value.name] for outputs in found]
            if LENGTH in value.shape:
                joined[value.name] = np.concatenate(pieces, axis=value.shape.index(LENGTH))
            else:
                joined[value.name] = pieces[-1]
        after = [array.astype(np.float32) for array in state.numpy()]
        return name_result(self.metadata, joined, after)

    def _cut(
        self, question: Question, parts: Sequence[int] | None
    ) -> Iterator[dict[str, np.ndarray]]:
        """The inputs of each call; what has no length goes into every one."""
        if parts is None:
            yield question.inputs
            return
        start = 0
        for part in parts:
            cut = {}
            for value in self.metadata.inputs:
                array = question.inputs[value.name]
                if LENGTH in value.shape:
                    steps = np.arange(start, start + part)
                    array = array.take(steps, axis=value.shape.index(LENGTH))
                cut[value.name] = array
            yield cut
            start += part

    def check(self, case: Case) -> Check:
        """Compare every output and state.

        Returns:
            The worst of the comparisons; of failures, the one of the first layer that differs.
        """
        try:
            found = self.run(case.question, case.parts)
        except Exception as error:  # a backend may raise anything; a verifier reports it
            return Check(self.backend, case.what, math.inf, 0.0, "", first_line(error))
        try:
            answer = self.truth.answer(case.question)
        except Exception as error:  # a user's module may raise anything
            refused = f"the module refuses it: {first_line(error)}"
            return Check(self.backend, case.what, math.inf, 0.0, "", refused)
        checks = []
        for name, exact in answer.exact.items():
            allowed = self._bound(answer.rounding[name])
            checks.append(compare(self.backend, case.what, found[name], exact, allowed, name=name))
        failed = [check for check in checks if not check.passed]
        return failed[0] if failed else worst(checks)

    def _bound(self, rounding: float) -> float:
        packed = self.metadata.weights is not None
        return bound("model", self.metadata.dtype, rounding, packed=packed)

    def text(self, question: Question) -> Check:
        """Next-token agreement over a real text.

        A token counts as different where the backend's choice is not the truth's although the truth
        prefers its own by more than the bound on logits allows both to move. The error is the share of
        different tokens; none are allowed.
        """
        tokens = question.inputs[self.metadata.inputs[0].name]
        what = f"next token over {tokens.shape[1]} of text"
        try:
            logits = self.run(question, None)["output"]
        except Exception as error:
            return Check(self.backend, what, math.inf, 0.0, "", first_line(error))
        answer = self.truth.answer(question)
        exact = answer.exact["output"]
        if logits.shape != exact.shape or not np.isfinite(logits).all():
            return compare(self.backend, what, logits, exact, 0.0, name=contract.LOGITS)
        allowed = self._bound(answer.rounding["output"])
        top_two = np.sort(exact, axis=-1)[..., -2:]
        margin = top_two[..., 1] - top_two[..., 0]
        # Both of two logits may move by the bound, in opposite directions.
        decided = margin > 2 * allowed * np.sqrt((exact**2).mean(-1)) * math.sqrt(2)
        different = (logits.argmax(-1) != exact.argmax(-1)) & decided
        plain = float((logits.argmax(-1) == exact.argmax(-1)).mean())
        where = f"{plain:.2%} equal, {float(decided.mean()):.1%} decided"
        if different.any():
            where += f"; first at token {int(different[0].argmax())}"
        return Check(self.backend, what, float(different.mean()), 0.0, where)


class Drawing:
    """Random inputs and states of a program, the same at every run.

    Args:
        metadata: of the folder.
        usual: size of axes other than batch and length where none is asked for.
        lowest: of integers that are no tokens; 1 where they count something.
    """

    def __init__(self, metadata: Metadata, usual: int = _USUAL_SIZE, lowest: int = 0) -> None:
        self.metadata = metadata
        self.usual = usual
        self.lowest = lowest
        self.rng = np.random.default_rng(0)
        self.axes = list(
            dict.fromkeys(
                split_axis(axis)[1]
                for value in metadata.inputs
                for axis in value.shape
                if isinstance(axis, str)
            )
        )

    def inputs(self, scale: float = 1.0, **sizes: int) -> dict[str, np.ndarray]:
        """Inputs by name; axes that ``sizes`` does not name have their usual one."""
        known = self._sizes(sizes)
        return {value.name: self._draw(value, known, scale) for value in self.metadata.inputs}

    def states(self, scale: float, **sizes: int) -> list[np.ndarray]:
        """States that have read something, floats of this standard deviation."""
        grown = {state.grown_axis: _GROWN for state in self.metadata.states if state.grown_axis}
        known = self._sizes(sizes) | grown
        return [self._draw(state.past, known, scale) for state in self.metadata.states]

    def _sizes(self, asked: dict[str, int]) -> dict[str, int]:
        usual = {BATCH: _USUAL_SIZE, LENGTH: _USUAL_SIZE}
        return {axis: asked.get(axis, usual.get(axis, self.usual)) for axis in self.axes}

    def _draw(self, value: Value, sizes: dict[str, int], scale: float) -> np.ndarray:
        shape, dtype = value.resolve(sizes), NUMPY_DTYPES[value.dtype]
        if dtype.kind in "iub":
            is_tokens = self.metadata.takes_tokens and value is self.metadata.inputs[0]
            if is_tokens:
                return self.rng.integers(0, self.metadata.vocab_size, shape).astype(dtype)
            return self.rng.integers(self.lowest, _INTEGERS, shape).astype(dtype)
        return np.float32(scale) * self.rng.standard_normal(shape, dtype=np.float32)


def program_cases(
    metadata: Metadata, truth: Truth, *, lengths: Sequence[int], batches: Sequence[int]
) -> tuple[list[Case], dict[str, str]]:
    """What every backend is asked: the grid of sizes, splits of one sequence, extremes.

    Args:
        metadata: of the folder.
        truth: of the source; what the dtype itself does not survive is not asked.
        lengths, batches: the grid, as far as the program has these axes.

    Returns:
        The cases, and what is left out, each with the reason: sizes that the module itself refuses, extremes
        where rounding decides, and everything of a module of which two runs differ.

    Raises:
        ExportError: the module takes none of the sizes that are tried.
    """
    drawing = _usual_drawing(metadata, truth)
    if metadata.model is None and truth.draws(Question(drawing.inputs())):
        return [], {"whole model": _DRAWS}
    cases: list[Case] = []
    refused: dict[str, str] = {}
    for what, sizes in _grid(drawing.axes, lengths, batches, drawing.usual):
        case = Case(what, Question(drawing.inputs(**sizes)))
        # Batch and length have no minimum: what fails there is a fault.
        reason = "" if sizes.keys() <= {BATCH, LENGTH} else _refusal(truth, case.question)
        if reason:
            refused[what] = reason
        else:
            cases.append(case)
    if _can_be_cut(metadata):
        whole = Question(drawing.inputs(**{BATCH: 1, LENGTH: _SPLIT_LENGTH}))
        cases += [Case(f"split: {what}", whole, parts) for what, parts in _SPLITS.items()]
    for case in _extremes(metadata, truth, drawing):
        change = truth.change(case.question, _ROUNDING) if metadata.model is None else 0.0
        if change > FP32_BOUND["model"]:  # such as a norm of a constant image
            refused[case.what] = (
                f"rounding decides there: the module turns a change of its inputs by {_ROUNDING:.0e} into one "
                f"of {change:.0e}"
            )
        else:
            cases.append(case)
    return cases, refused


def _usual_drawing(metadata: Metadata, truth: Truth) -> Drawing:
    """Inputs that the module takes, of some size of every axis that is neither batch nor length.

    Raises:
        ExportError: it takes none of those that are tried.
    """
    if metadata.model is not None:
        return Drawing(metadata)
    reason = ""
    for lowest, usual in itertools.product((0, 1), _USUAL_OTHER_SIZES):
        drawing = Drawing(metadata, usual, lowest)
        reason = _refusal(truth, Question(drawing.inputs()))
        if not reason:
            return Drawing(metadata, usual, lowest)
    others = [axis for axis in drawing.axes if axis not in (BATCH, LENGTH)]
    tried = ", ".join(map(str, _USUAL_OTHER_SIZES))
    of_sizes = f", of the sizes {tried} of {' and '.join(others)}" if others else ""
    raise ExportError(f"the module takes no inputs drawn at random{of_sizes}: {reason}")


def _refusal(truth: Truth, question: Question) -> str:
    """Why the module itself does not take a question; empty where it does."""
    try:
        truth.answer(question)
    except Exception as error:  # a user's module may raise anything
        return f"the module refuses it: {first_line(error)}"
    return ""


def _grid(
    axes: Sequence[str], lengths: Sequence[int], batches: Sequence[int], usual: int
) -> Iterator[tuple[str, dict[str, int]]]:
    """Name and sizes of each point: every batch and length, then one of the other axes at a time."""
    shapes = {axis: sizes for axis, sizes in ((BATCH, batches), (LENGTH, lengths)) if axis in axes}
    for numbers in itertools.product(*shapes.values()):
        sizes = dict(zip(shapes, numbers, strict=True))
        yield ", ".join(f"{axis} {n}" for axis, n in sizes.items()) or "usual sizes", sizes
    for axis in axes:
        if axis not in shapes:
            for number in (*_OTHER_SIZES, 2 * usual):
                yield f"{axis} {number}", {axis: number}


def _can_be_cut(metadata: Metadata) -> bool:
    """Whether a sequence may be read in parts: it has states, and outputs of each step or of the last."""
    has_length = any(LENGTH in value.shape for value in metadata.inputs)
    per_step = metadata.last_logits_only or all(LENGTH in v.shape for v in metadata.outputs)
    return bool(metadata.states) and has_length and per_step


def _extremes(metadata: Metadata, truth: Truth, drawing: Drawing) -> Iterator[Case]:
    inputs = drawing.inputs(**{BATCH: 2, LENGTH: 20})
    is_ours = metadata.model is not None
    if metadata.states:
        for scale in _LARGE_STATES if is_ours else (1.0,):
            question = Question(inputs, drawing.states(scale, **{BATCH: 2, LENGTH: 20}))
            if truth.answer(question).survives:
                kind = "extreme: states of" if is_ours else "states of"
                yield Case(f"{kind} {scale:g}", question)
                break
    first = metadata.inputs[0].name
    if metadata.takes_tokens:
        ends = np.array([[0, metadata.vocab_size - 1] * 10])
        repeated = np.full((1, _REPEATED), metadata.vocab_size - 1)
        yield Case("extreme: first, last token", Question({first: ends}))
        yield Case("extreme: one token repeated", Question({first: repeated}))
        return
    # Of a user's module nobody knows what large inputs mean; zeros are always allowed.
    for scale in (1000.0, 0.001) if is_ours else (0.001, 0.0):
        scaled = drawing.inputs(scale, **{BATCH: 1, LENGTH: 20})
        yield Case(f"extreme: inputs of {scale:g}", Question(scaled))
