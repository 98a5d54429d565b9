"""Whole models: a session of any backend against the PyTorch model, states included."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mamba_export import contract
from mamba_export.errors import first_line
from mamba_export.models import LayerState, MambaBackbone, MambaLM
from mamba_export.verify.bounds import Check, bound, compare, relative_error, worst

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
class Result:
    """What a model returns: its output, and its states in graph order, as fp32 or float64 arrays."""

    output: np.ndarray
    states: list[np.ndarray]

    def is_finite(self) -> bool:
        """Whether no value overflowed or is NaN."""
        return all(bool(np.isfinite(array).all()) for _, array in self.named())

    def named(self) -> Iterator[tuple[str, np.ndarray]]:
        """States first, layer by layer, so that the first difference names the first differing layer."""
        for index, array in enumerate(self.states):
            yield f"layer {index // 2} {'recurrent' if index % 2 else 'conv'} state", array
        yield "output", self.output


class TorchModel:
    """The source model as a reference, in one dtype."""

    def __init__(self, model: MambaLM | MambaBackbone, last_logits_only: bool) -> None:
        self.model = model
        self.last_logits_only = last_logits_only

    @torch.no_grad()
    def run(self, sequence: np.ndarray, states: Sequence[np.ndarray] | None = None) -> Result:
        """Run the whole sequence at once from ``states`` (fp32 arrays in graph order) or from zeros."""
        x = torch.from_numpy(sequence)
        dtype = self.model.backbone_dtype
        layers = None
        if states is not None:
            tensors = [torch.from_numpy(array) for array in states]
            layers = [
                LayerState(tensors[i].to(dtype), tensors[i + 1]) for i in range(0, len(tensors), 2)
            ]
        if isinstance(self.model, MambaLM):
            y, new = self.model(x, layers, last_logits_only=self.last_logits_only)
        else:
            y, new = self.model(x.to(dtype), layers)
        return Result(_array(y), [_array(tensor) for layer in new for tensor in layer])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().numpy()


@dataclass
class Comparison:
    """One backend's session, held against the truth and the same-dtype reference.

    Args:
        backend: name for the report.
        session: the backend's session on the exported folder.
        truth: the source model in fp32.
        reference: the source model in the file's dtype (the truth itself for fp32).
        dtype: of the file.
    """

    backend: str
    session: Any
    truth: TorchModel
    reference: TorchModel
    dtype: str

    def _session_run(
        self, parts: Sequence[np.ndarray], states: Sequence[np.ndarray] | None
    ) -> Result:
        state = None if states is None else self.session.state_from_numpy(states)
        outputs = []
        for part in parts:
            output, state = self.session.run(part, state)
            outputs.append(output.astype(np.float32))
        joined = outputs[-1] if self.truth.last_logits_only else np.concatenate(outputs, axis=1)
        assert state is not None
        return Result(joined, [array.astype(np.float32) for array in state.numpy()])

    def check(
        self,
        what: str,
        sequence: np.ndarray,
        *,
        parts: Sequence[int] | None = None,
        states: Sequence[np.ndarray] | None = None,
    ) -> Check:
        """Compare output and every state of one sequence.

        Args:
            what: name of the check.
            sequence: (batch, length) tokens or (batch, length, d_model) inputs.
            parts: lengths of the calls it is cut into; None for one call.
            states: initial states, fp32 arrays in graph order; None for zeros.

        Returns:
            The worst of the comparisons; of failures, the one of the first layer that differs.
        """
        cuts = np.cumsum(parts or (sequence.shape[1],))[:-1]
        try:
            found = self._session_run(np.split(sequence, cuts, axis=1), states)
        except Exception as error:  # a backend may raise anything; a verifier reports it
            reason = first_line(error)
            return Check(self.backend, what, math.inf, 0.0, "", reason)
        truth = self.truth.run(sequence, states)
        same = truth if self.reference is self.truth else self.reference.run(sequence, states)
        checks = []
        for (name, array), (_, exact), (_, reference) in zip(
            found.named(), truth.named(), same.named(), strict=True
        ):
            allowed = bound("model", self.dtype, relative_error(reference, exact))
            checks.append(compare(self.backend, what, array, exact, allowed, name=name))
        failed = [check for check in checks if not check.passed]
        return failed[0] if failed else worst(checks)

    def text(self, tokens: np.ndarray) -> Check:
        """Next-token agreement over a real text, (1, length) tokens.

        A token counts as different where the backend's choice is not the truth's although the truth
        prefers its own by more than the bound on logits allows both to move. The error is the share of
        different tokens; none are allowed.
        """
        what = f"next token over {tokens.shape[1]} of text"
        try:
            logits = self._session_run([tokens], None).output
        except Exception as error:
            reason = first_line(error)
            return Check(self.backend, what, math.inf, 0.0, "", reason)
        exact = self.truth.run(tokens).output
        same = exact if self.reference is self.truth else self.reference.run(tokens).output
        if logits.shape != exact.shape or not np.isfinite(logits).all():
            return compare(self.backend, what, logits, exact, 0.0, name=contract.LOGITS)
        allowed = bound("model", self.dtype, relative_error(same, exact))
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


def model_checks(
    comparison: Comparison,
    model: MambaLM | MambaBackbone,
    *,
    lengths: Sequence[int],
    batches: Sequence[int],
    text: np.ndarray | None,
) -> Iterator[Check]:
    """All checks of one backend on a whole model, one by one.

    Args:
        comparison: the backend and its references.
        model: the source, for its sizes.
        lengths, batches: the grid.
        text: (1, length) tokens of a real text, or None.
    """
    rng = np.random.default_rng(0)
    config = model.config

    def draw(batch: int, length: int) -> np.ndarray:
        if isinstance(model, MambaLM):
            return rng.integers(0, config.vocab_size, (batch, length))
        return rng.standard_normal((batch, length, config.d_model), dtype=np.float32)

    for batch in batches:
        for length in lengths:
            yield comparison.check(f"batch {batch}, length {length}", draw(batch, length))
    sequence = draw(1, _SPLIT_LENGTH)
    for what, parts in _SPLITS.items():
        yield comparison.check(f"split: {what}", sequence, parts=parts)

    def states(batch: int, scale: float) -> list[np.ndarray]:
        drawn = []
        for _ in range(config.n_layer):
            for width in (config.d_conv - 1, config.d_state):
                shape = (batch, config.inner, width)
                drawn.append(scale * rng.standard_normal(shape, dtype=np.float32))
        return drawn

    sequence = draw(2, 20)
    for scale in _LARGE_STATES:
        initial = states(2, scale)
        if comparison.reference.run(sequence, initial).is_finite():
            what = f"extreme: states of {scale:g}"
            yield comparison.check(what, sequence, states=initial)
            break
    if isinstance(model, MambaLM):
        ends = np.array([[0, config.vocab_size - 1] * 10])
        yield comparison.check("extreme: first, last token", ends)
        yield comparison.check("extreme: one token repeated", np.full((1, _REPEATED), ends[0, 1]))
    else:
        yield comparison.check("extreme: inputs of 1000", 1000 * draw(1, 20))
        yield comparison.check("extreme: inputs of 0.001", 0.001 * draw(1, 20))
    if text is not None:
        yield comparison.text(text)
