"""Bits per byte of a text under a model and under general compressors, and sampled text."""

from __future__ import annotations

import gzip
import lzma
import math

import torch
from torch.nn import functional as F

from mamba_export.models import MambaLM
from training.data import END_OF_TEXT, as_tokens


@torch.no_grad()
def bits_per_byte(model: MambaLM, text: bytes, *, chunk: int = 8192) -> float:
    """Mean of -log2 p(byte | all bytes before it) over the whole of ``text``, read as one stream.

    The stream starts from a zero state with the end-of-text token; every byte of the text is predicted,
    and the state is carried from chunk to chunk, so ``chunk`` (bytes a call) affects memory alone.
    Computed in the weights' dtype, without autocast; summed in fp64.
    """
    device = model.embeddings.weight.device
    tokens = as_tokens(text, device).long()[None]
    was_training = model.training
    model.eval()
    total, state = torch.zeros((), dtype=torch.float64, device=device), None
    for start in range(0, len(text), chunk):
        part = tokens[:, start : start + chunk + 1]
        logits, state = model(part[:, :-1], state)
        total += F.cross_entropy(logits[0].float(), part[0, 1:], reduction="none").double().sum()
    model.train(was_training)
    return total.item() / len(text) / math.log(2)


def xz_bits_per_byte(text: bytes) -> float:
    """Bits per byte of ``xz -9e`` on the text alone."""
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


def gzip_bits_per_byte(text: bytes) -> float:
    """Bits per byte of ``gzip -9`` on the text alone."""
    return 8 * len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text)


@torch.no_grad()
def generate(
    model: MambaLM, prompt: bytes, count: int, *, temperature: float = 0.0, seed: int = 0
) -> bytes:
    """Up to ``count`` bytes after ``prompt``: greedy at temperature 0, else sampled. Stops at end-of-text."""
    device = model.embeddings.weight.device
    was_training = model.training
    model.eval()
    # The random numbers come from the CPU, so that a seed means the same on every device.
    generator = torch.Generator().manual_seed(seed)
    ids, state = as_tokens(prompt, device).long()[None], None
    result = bytearray()
    while len(result) < count:
        logits, state = model(ids, state, last_logits_only=True)
        scores = logits[0, -1].float().cpu()
        if temperature > 0:
            token = int(
                torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator)
            )
        else:
            token = int(scores.argmax())
        if token == END_OF_TEXT:
            break
        result.append(token)
        ids = torch.tensor([[token]], device=device)
    model.train(was_training)
    return bytes(result)
