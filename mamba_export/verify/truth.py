"""The truth of whole models: the source in PyTorch, in float64, on the operators' references.

Nothing that is judged takes part: inside ``forced("reference")`` every operator runs its definition, a loop
over time in plain PyTorch, whatever is installed. What is outside of the operators (projections, norms) is
PyTorch's own. The same-dtype reference, whose rounding the bounds follow, is computed the same way.

A reference takes about 0.1 ms a step and layer of a small model, and 1 ms with 1536 channels: an answer is
computed once and kept for every backend.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mamba_export.models import TORCH_DTYPES, LayerState, MambaBackbone, MambaLM, cast
from mamba_export.operators.dispatch import forced
from mamba_export.verify.bounds import relative_error

Model = MambaLM | MambaBackbone

_MOST_KEPT = 1 << 30
"""Bytes of answers that are kept for the next backend; what is beyond is computed again."""


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

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(array.nbytes for _, array in self.named())


@dataclass(frozen=True, eq=False)
class Question:
    """A sequence, (batch, length) tokens or (batch, length, d_model) inputs, from ``states`` or from zeros.

    states: fp32 arrays in graph order.
    """

    sequence: np.ndarray
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
    """The source model on the operators' references, in the dtype that its parameters have."""

    def __init__(self, model: Model, last_logits_only: bool) -> None:
        self.model = model
        self.last_logits_only = last_logits_only

    @torch.no_grad()
    def run(self, question: Question) -> Result:
        """The whole sequence at once."""
        x = torch.from_numpy(question.sequence)
        dtype = self.model.backbone_dtype
        layers = None
        if question.states is not None:
            wide = dtype if dtype == torch.float64 else torch.float32
            tensors = [torch.from_numpy(array) for array in question.states]
            layers = [
                LayerState(tensors[i].to(dtype), tensors[i + 1].to(wide))
                for i in range(0, len(tensors), 2)
            ]
        with forced("reference"):
            if isinstance(self.model, MambaLM):
                y, new = self.model(x, layers, last_logits_only=self.last_logits_only)
            else:
                y, new = self.model(x.to(dtype), layers)
        return Result(_array(y), [_array(tensor) for layer in new for tensor in layer])


def _array(tensor: Tensor) -> np.ndarray:
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


@dataclass
class Truth:
    """Answers to questions about a model, each computed once as far as memory goes.

    Args:
        exact: the source in float64, or in fp32 where float64 does not fit.
        same_dtype: the source in the file's dtype; None for fp32, whose bounds need none.
        words: which truth it is, for the report.
    """

    exact: Reference
    same_dtype: Reference | None
    words: str
    _kept: dict[Question, Answer] = field(default_factory=dict)
    _kept_bytes: int = 0

    def answer(self, question: Question) -> Answer:
        """What the model makes of a question."""
        if question in self._kept:
            return self._kept[question]
        exact = self.exact.run(question)
        names = [name for name, _ in exact.named()]
        if self.same_dtype is None:
            answer = Answer(exact, dict.fromkeys(names, 0.0), exact.is_finite())
        else:
            same = self.same_dtype.run(question)
            rounding = {
                name: relative_error(array, truth)
                for (name, array), (_, truth) in zip(same.named(), exact.named(), strict=True)
            }
            answer = Answer(exact, rounding, same.is_finite())
        if self._kept_bytes + exact.bytes <= _MOST_KEPT:
            self._kept[question] = answer
            self._kept_bytes += exact.bytes
        return answer


def make_truth(source: Model, dtype: str, last_logits_only: bool, *, owned: bool) -> Truth:
    """The truth of a model.

    Args:
        source: in fp32, on the CPU.
        dtype: of the exported file.
        last_logits_only: whether the file returns the last step's logits alone.
        owned: the source may be changed; False makes copies of it.
    """
    same_dtype = None
    if dtype != "fp32":
        low = copy.deepcopy(source)
        cast(low, TORCH_DTYPES[dtype])
        same_dtype = Reference(low, last_logits_only)
    needed = 8 * sum(parameter.numel() for parameter in source.parameters())
    free = available_memory()
    if free is not None and needed > free:
        words = f"PyTorch in fp32 (float64 needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free)"
        return Truth(Reference(source, last_logits_only), same_dtype, words)
    wide = (source if owned else copy.deepcopy(source)).double()
    return Truth(Reference(wide, last_logits_only), same_dtype, "PyTorch in float64")


def available_memory() -> int | None:
    """Bytes that this process may still take; None where the system does not say."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
        group = Path("/sys/fs/cgroup")  # a container's own limit
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)
