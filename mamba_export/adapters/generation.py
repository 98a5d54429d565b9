"""mamba_ssm.utils.generation: states of a generation, and a plain loop over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_export.adapters.unsupported import refuse


@dataclass
class InferenceParams:
    """What a model reads and writes while it generates; ``key_value_memory_dict`` has states by layer."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin again, with the same states' memory."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


class Generated(NamedTuple):
    """sequences (batch, length), prompts included; scores, logits (batch, vocab_size) of every new token."""

    sequences: Tensor
    scores: tuple[Tensor, ...]


def sample(
    logits: Tensor,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """The next tokens (batch,) of logits (batch, vocab_size); ``top_k`` 1 takes the likeliest.

    Raises:
        NotImplementedError: min_p.
    """
    if top_k == 1:
        return logits.argmax(dim=-1)
    if min_p:
        refuse("sample with min_p", "use top_k or top_p")
    values, tokens = logits.sort(dim=-1, descending=True)
    if top_k > 0:
        values, tokens = values[:, :top_k], tokens[:, :top_k]
    chances = torch.softmax(values / temperature, dim=-1)
    if 0.0 < top_p < 1.0:
        before = chances.cumsum(dim=-1) - chances
        chances = chances.masked_fill(before >= top_p, 0.0)
    chosen = torch.multinomial(chances, num_samples=1)
    return tokens.gather(1, chosen).squeeze(1)


class GenerationMixin:
    """``generate`` for a model with ``forward(input_ids, inference_params=, num_last_tokens=)``."""

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        eos_token_id: int | None = None,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **_: Any,
    ) -> Tensor | Generated:
        """Tokens after prompts (batch, length), up to ``max_length`` with the prompt, or to the end of text.

        mamba_ssm's ``cg``, ``enable_timing`` and ``vocab_size`` mean nothing here.
        """
        model: Any = self
        states = InferenceParams(max_seqlen=max_length, max_batch_size=input_ids.shape[0])
        tokens, scores, inputs = [input_ids], [], input_ids
        while sum(part.shape[1] for part in tokens) < max_length:
            logits = model(inputs, inference_params=states, num_last_tokens=1).logits[:, -1]
            states.seqlen_offset += inputs.shape[1]
            inputs = sample(logits, top_k, top_p, min_p, temperature).unsqueeze(1)
            tokens.append(inputs)
            scores.append(logits)
            if eos_token_id is not None and bool((inputs == eos_token_id).all()):
                break
        sequences = torch.cat(tokens, dim=1)
        if not return_dict_in_generate:
            return sequences
        return Generated(sequences, tuple(scores) if output_scores else ())
