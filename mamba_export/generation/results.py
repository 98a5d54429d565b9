"""What a generation returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

LENGTH = "length"
END_OF_TEXT = "end_of_text"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went.

    Args:
        prompt_tokens: read, over all sequences.
        generated_tokens: chosen, over all sequences; an end-of-text token counts.
        prefill_seconds: until the first token of every sequence was there.
        decode_seconds: from there to the end.
        first_tokens: how many of ``generated_tokens`` belong to the prefill.
    """

    prompt_tokens: int
    generated_tokens: int
    prefill_seconds: float
    decode_seconds: float
    first_tokens: int

    @property
    def seconds(self) -> float:
        """Of the whole request."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Prompt tokens a second; None where the prompt was not finished."""
        return self.prompt_tokens / self.prefill_seconds if self.first_tokens else None

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens a second after the first, over the whole batch; None where there were none."""
        tokens = self.generated_tokens - self.first_tokens
        return tokens / self.decode_seconds if tokens > 0 else None


@dataclass(frozen=True)
class Generation:
    """The continuation of one prompt.

    Args:
        prompt_tokens: what was read.
        tokens: what was generated, without the end-of-text token.
        text: the same as text that follows the prompt's; None where the folder has no tokenizer.
        finish_reason: "length", "end_of_text" or "interrupted".
    """

    prompt_tokens: list[int]
    tokens: list[int]
    text: str | None
    finish_reason: str


@dataclass(frozen=True)
class Generations(Sequence[Generation]):
    """The continuations of a request, in the order of its prompts, and its timings."""

    sequences: tuple[Generation, ...]
    timings: Timings

    @overload
    def __getitem__(self, index: int) -> Generation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Generation]: ...
    def __getitem__(self, index: int | slice) -> Generation | Sequence[Generation]:
        return self.sequences[index]

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return any(one.finish_reason == INTERRUPTED for one in self.sequences)
