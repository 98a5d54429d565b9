"""Which parts a prompt is read by on a GPU. A function of sizes alone, so that results repeat."""

from __future__ import annotations

from mamba_export.backends.onnxruntime.device import storage_dtype
from mamba_export.contract.program import split_axis
from mamba_export.folder.metadata import Metadata

LARGEST = 8192
"""Tokens of a part, those of a batch together. More gain little: on an H100 a 2.8B model reads a long prompt by
parts of 2048 as fast as at once but for 2 %, a 130M model by parts of 4096 but for 4 %."""
LEAST = 16
"""Tokens of each sequence in the largest part, however large the batch."""
GRANULE = 64
"""What is left beside the largest parts is read by a multiple of this, and a rest below it. A captured run of
few tokens takes as long as its kernels' starts and one reading of the weights, however few they are: two parts
take less time than a plain run, which waits for the host, and a part for each power of two would take more."""
_LOGITS_BYTES = 1 << 27  # of a part, where the program returns those of every step


def why_not(metadata: Metadata) -> str | None:
    """Why prompts of a program cannot be read by parts in memory of their own; None where they can."""
    if not metadata.takes_tokens or len(metadata.inputs) > 1 or len(metadata.outputs) > 1:
        return "the program is no language model of tokens alone"
    if not metadata.states or metadata.grows:
        return "the program has no states, or states that grow"
    batch, length = metadata.inputs[0].shape
    fixed = "a size of the program is fixed, or another than batch and length"
    if not isinstance(batch, str) or not isinstance(length, str) or batch == length:
        return fixed
    if split_axis(batch) != (1, batch) or split_axis(length) != (1, length):
        return fixed
    if metadata.outputs[0].shape[:2] not in ((batch, length), (batch, 1)):
        return fixed
    state_sizes = {size for state in metadata.states for size in state.past.shape}
    return fixed if {size for size in state_sizes if isinstance(size, str)} - {batch} else None


def has_all_logits(metadata: Metadata) -> bool:
    """Whether the program returns the logits of every step."""
    return metadata.outputs[0].shape[1] != 1


def largest_part(metadata: Metadata, batch: int) -> int:
    """Tokens of each sequence in the largest part of a prompt: a power of two."""
    most = LARGEST // batch
    if has_all_logits(metadata):
        itemsize = storage_dtype(metadata.outputs[0].dtype).itemsize
        most = min(most, _LOGITS_BYTES // (batch * metadata.vocab_size * itemsize))
    return 1 << (max(most, LEAST).bit_length() - 1)


def part_lengths(length: int, largest: int) -> list[int]:
    """Lengths of a prompt's parts, in order: largest ones, a multiple of ``GRANULE``, and a rest below it."""
    whole, rest = divmod(length, largest)
    tail = rest % GRANULE
    return [largest] * whole + [part for part in (rest - tail, tail) if part]
