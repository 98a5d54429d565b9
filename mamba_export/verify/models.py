"""Whole models: a session of any backend against the PyTorch model, states included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mamba_export import contract
from mamba_export.errors import first_line
from mamba_export.models import MambaLM
from mamba_export.verify.bounds import Check, bound, compare, worst
from mamba_export.verify.truth import Question, Result, Truth

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
    """One backend's session, held against the truth.

    Args:
        backend: name for the report.
        session: the backend's session on the exported folder.
        truth: of the source model.
        dtype: of the file.
    """

    backend: str
    session: Any
    truth: Truth
    dtype: str

    def _session_run(
        self, parts: Sequence[np.ndarray], states: Sequence[np.ndarray] | None
    ) -> Result:
        state = None if states is None else self.session.state_from_numpy(states)
        outputs = []
        for part in parts:
            output, state = self.session.run(part, state)
            outputs.append(output.astype(np.float32))
        joined = (
            outputs[-1] if self.truth.exact.last_logits_only else np.concatenate(outputs, axis=1)
        )
        assert state is not None
        return Result(joined, [array.astype(np.float32) for array in state.numpy()])

    def check(self, case: Case) -> Check:
        """Compare output and every state of one sequence.

        Returns:
            The worst of the comparisons; of failures, the one of the first layer that differs.
        """
        sequence, states = case.question.sequence, case.question.states
        cuts = np.cumsum(case.parts or (sequence.shape[1],))[:-1]
        try:
            found = self._session_run(np.split(sequence, cuts, axis=1), states)
        except Exception as error:  # a backend may raise anything; a verifier reports it
            return Check(self.backend, case.what, math.inf, 0.0, "", first_line(error))
        answer = self.truth.answer(case.question)
        checks = []
        for (name, array), (_, exact) in zip(found.named(), answer.exact.named(), strict=True):
            allowed = bound("model", self.dtype, answer.rounding[name])
            checks.append(compare(self.backend, case.what, array, exact, allowed, name=name))
        failed = [check for check in checks if not check.passed]
        return failed[0] if failed else worst(checks)

    def text(self, question: Question) -> Check:
        """Next-token agreement over a real text.

        A token counts as different where the backend's choice is not the truth's although the truth
        prefers its own by more than the bound on logits allows both to move. The error is the share of
        different tokens; none are allowed.
        """
        tokens = question.sequence
        what = f"next token over {tokens.shape[1]} of text"
        try:
            logits = self._session_run([tokens], None).output
        except Exception as error:
            return Check(self.backend, what, math.inf, 0.0, "", first_line(error))
        answer = self.truth.answer(question)
        exact = answer.exact.output
        if logits.shape != exact.shape or not np.isfinite(logits).all():
            return compare(self.backend, what, logits, exact, 0.0, name=contract.LOGITS)
        allowed = bound("model", self.dtype, answer.rounding["output"])
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


def model_cases(truth: Truth, *, lengths: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """What every backend is asked about a whole model: the grid, splits of one sequence, extremes.

    Args:
        truth: of the source model.
        lengths, batches: the grid.
    """
    rng = np.random.default_rng(0)
    model = truth.exact.model
    config = model.config

    def draw(batch: int, length: int) -> np.ndarray:
        if isinstance(model, MambaLM):
            return rng.integers(0, config.vocab_size, (batch, length))
        return rng.standard_normal((batch, length, config.d_model), dtype=np.float32)

    cases = [
        Case(f"batch {batch}, length {length}", Question(draw(batch, length)))
        for batch in batches
        for length in lengths
    ]
    whole = Question(draw(1, _SPLIT_LENGTH))
    cases += [Case(f"split: {what}", whole, parts) for what, parts in _SPLITS.items()]

    def states(batch: int, scale: float) -> list[np.ndarray]:
        drawn = []
        for _ in range(config.n_layer):
            for width in (config.d_conv - 1, config.d_state):
                shape = (batch, config.inner, width)
                drawn.append(scale * rng.standard_normal(shape, dtype=np.float32))
        return drawn

    sequence = draw(2, 20)
    for scale in _LARGE_STATES:
        question = Question(sequence, states(2, scale))
        if truth.answer(question).survives:
            cases.append(Case(f"extreme: states of {scale:g}", question))
            break
    if isinstance(model, MambaLM):
        ends = np.array([[0, config.vocab_size - 1] * 10])
        repeated = np.full((1, _REPEATED), ends[0, 1])
        cases.append(Case("extreme: first, last token", Question(ends)))
        cases.append(Case("extreme: one token repeated", Question(repeated)))
    else:
        cases.append(Case("extreme: inputs of 1000", Question(1000 * draw(1, 20))))
        cases.append(Case("extreme: inputs of 0.001", Question(0.001 * draw(1, 20))))
    return cases
