"""What packed weights cost a language model: bits a byte of a real text, beside the source as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mamba_export.errors import first_line
from mamba_export.verify.bounds import PACKED_LOSS, Check
from mamba_export.verify.models import Comparison
from mamba_export.verify.truth import Question


@dataclass(frozen=True)
class TextBits:
    """How well a text is predicted, its first token apart.

    nats: of all predictions. tokens, size: those that were predicted, and their bytes.
    """

    nats: float
    tokens: int
    size: int

    @classmethod
    def of(cls, logits: np.ndarray, tokens: np.ndarray, size: int) -> TextBits:
        """From logits (length, vocab_size) and tokens (length,) of a text of ``size`` bytes."""
        scores = logits[:-1].astype(np.float64)
        scores -= scores.max(axis=-1, keepdims=True)
        chosen = scores[np.arange(len(scores)), tokens[1:]]
        nats = float((np.log(np.exp(scores).sum(axis=-1)) - chosen).sum())
        return cls(nats, len(scores), size)

    @property
    def bits_per_byte(self) -> float:
        """Bits that coding a byte of the text takes."""
        return self.nats / math.log(2) / self.size

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return math.exp(min(self.nats / self.tokens, 700))

    def __str__(self) -> str:
        return f"{self.bits_per_byte:.4f} (perplexity {self.perplexity:.4g})"


class Loss:
    """The check of one text.

    Args:
        comparison: of the backend that is judged; its truth knows the source as it is.
        question: the tokens (1, length), length at least 2.
        size: bytes of the text that its tokens but for the first stand for.
    """

    def __init__(self, comparison: Comparison, question: Question, size: int) -> None:
        self.comparison = comparison
        self.question = question
        self.size = size

    def check(self) -> Check:
        """Bits a byte that are lost, against the bound of the codes' kind."""
        comparison = self.comparison
        weights = comparison.metadata.weights
        assert weights is not None
        tokens = self.question.inputs[comparison.metadata.inputs[0].name][0]
        what = f"bits a byte lost over {len(tokens)} of text"
        allowed = PACKED_LOSS[weights.kind]
        try:
            logits = comparison.run(self.question, None)["output"][0]
        except Exception as error:  # a backend may raise anything; a verifier reports it
            return Check(comparison.backend, what, math.inf, allowed, "", first_line(error))
        found = TextBits.of(logits, tokens, self.size)
        source = comparison.truth.unpacked(self.question)["output"][0]
        plain = TextBits.of(source, tokens, self.size)
        where = f"{found} where the source has {plain}"
        lost = found.bits_per_byte - plain.bits_per_byte
        return Check(comparison.backend, what, lost, allowed, where)
