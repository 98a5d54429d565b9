"""``generate`` and ``stream``: text or token ids in, continuations out, over any session."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mamba_export import contract, given
from mamba_export.errors import SessionError
from mamba_export.folder.tokenizer import Tokenizer
from mamba_export.generation.decoding import Decoding
from mamba_export.generation.results import Generation, Generations
from mamba_export.generation.sampling import Sampling
from mamba_export.generation.session import Session
from mamba_export.generation.values import as_array, check_inputs, check_tokens_alone
from mamba_export.untrusted import is_there

Prompts = str | Sequence[str] | Sequence[Sequence[int]]
MOST_TOKENS = 2**31 - 1
"""Of a continuation, as in mamba_run."""

OnToken = Callable[[int, int], None]


class TextSession(Protocol):
    """What ``mamba-export run`` needs of a session."""

    @property
    def provider(self) -> str:
        """What computes, for people."""
        ...

    def stream(
        self,
        prompts: Prompts,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 256,
        stop_at_end: bool = True,
        **options: Any,
    ) -> TextStream:
        """See ``GenerationMethods.stream``."""
        ...


class GenerationMethods:
    """``generate`` and ``stream`` for a class that is a ``Session``."""

    def generate(
        self: Session[Any],
        prompts: Prompts,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 256,
        stop_at_end: bool = True,
        on_token: OnToken | None = None,
        **options: Any,
    ) -> Generations:
        """Continue one or more prompts.

        Args:
            prompts: a text, texts, or sequences of token ids (lists, arrays, tensors, generators); of any
                lengths.
            sampling: how tokens are chosen; None for the likeliest, always.
            max_new_tokens: of each continuation, at least 1 and below 2^31.
            stop_at_end: end a continuation at the model's end-of-text token, or at any of them.
            on_token: called with (index of the prompt, token) as each token is chosen.
            **options: fields of ``Sampling`` by name (``temperature=0.7, seed=1``), in place of those that
                ``sampling`` has.

        Returns:
            A Generation a prompt, in order, and timings. After Ctrl-C it holds what there is, and
            unfinished continuations have the finish_reason "interrupted".

        Raises:
            SessionError: a prompt is empty or holds a token id outside the vocabulary, an option is out of
                range, the model takes no tokens, or text was given and there is no tokenizer.
            UnknownOptionError: an option is no field of ``Sampling``; the message names those that are.
        """
        given.function(on_token, "on_token", SessionError)
        chosen = _sampling(sampling, options)
        decoding = _decoding(self, prompts, chosen, max_new_tokens, stop_at_end)
        events = decoding.events()
        try:
            for row, token in events:
                if on_token is not None and token is not None:
                    on_token(row, token)
        except KeyboardInterrupt:
            events.close()
        return _result(decoding, _tokenizer_or_none(self))

    def stream(
        self: Session[Any],
        prompts: Prompts,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 256,
        stop_at_end: bool = True,
        **options: Any,
    ) -> TextStream:
        """``generate``, with the text as it comes: see there for the arguments and errors.

        Returns:
            An iterable of (index of the prompt, piece of text).
        """
        chosen = _sampling(sampling, options)
        decoding = _decoding(self, prompts, chosen, max_new_tokens, stop_at_end)
        return TextStream(decoding, self.tokenizer)


class TextStream:
    """Continuations as they are written: iterate for (index of the prompt, piece of text).

    A piece never ends inside a character. Ctrl-C while the model computes ends the iteration; to stop for
    another reason, stop iterating. ``result()`` tells what there is.
    """

    def __init__(self, decoding: Decoding, tokenizer: Tokenizer) -> None:
        self._decoding = decoding
        self._tokenizer = tokenizer
        self._pieces = self._generate()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self._pieces

    def result(self) -> Generations:
        """What was generated so far, with timings. Ends the generation."""
        self._pieces.close()
        return _result(self._decoding, self._tokenizer)

    def _generate(self) -> Generator[tuple[int, str], None, None]:
        rows = [self._tokenizer.detokenizer(prompt) for prompt in self._decoding.prompts]
        events = self._decoding.events()
        try:
            for row, token in events:
                piece = rows[row].finish() if token is None else rows[row].push(token)
                if piece:
                    yield row, piece
        except KeyboardInterrupt:
            pass
        finally:
            events.close()
        for row, detokenizer in enumerate(rows):  # of an interrupted row
            piece = detokenizer.finish()
            if piece:
                yield row, piece


def _sampling(sampling: Sampling | None, options: Mapping[str, Any]) -> Sampling:
    if sampling is None:
        sampling = Sampling()
    if not isinstance(sampling, Sampling):
        raise SessionError(
            f"sampling is {given.shown(sampling)}: give a Sampling, or its fields by name"
        )
    return sampling.replace(**options)


def _decoding(
    session: Session[Any],
    prompts: Prompts,
    sampling: Sampling,
    max_new_tokens: int,
    stop_at_end: bool,
) -> Decoding:
    metadata = session.metadata
    check_tokens_alone(metadata)
    max_new_tokens = given.integer(max_new_tokens, "max_new_tokens", 1, MOST_TOKENS, SessionError)
    stop_at_end = given.flag(stop_at_end, "stop_at_end", SessionError)
    end_tokens = metadata.end_tokens if stop_at_end else ()
    return Decoding(session, _encode(session, prompts), sampling, max_new_tokens, end_tokens)


def _encode(session: Session[Any], prompts: Prompts) -> list[list[int]]:
    prompts = [prompts] if isinstance(prompts, str) else _listed(prompts, "prompts")
    if not prompts:
        raise SessionError("no prompt was given")
    encoded = []
    for index, prompt in enumerate(prompts):
        name = "the prompt" if len(prompts) == 1 else f"prompt {index + 1}"
        if isinstance(prompt, (numbers.Number, np.number)):
            raise SessionError(
                "prompts are numbers: pass a list of token ids for each prompt, [[...]]"
            )
        tokens = prompt if isinstance(prompt, str) else _listed(prompt, name)
        if len(tokens) == 0:
            raise SessionError(f"{name} is empty: give at least one character or token")
        if isinstance(tokens, str):
            tokens = session.tokenizer.encode(tokens)
        if len(tokens) == 0:
            raise SessionError(f"{name} has no token")
        ids = as_array(tokens, name)[None]
        encoded.append(check_inputs(ids, session.metadata).first[0].tolist())
    return encoded


def _listed(values: Any, name: str) -> list[Any]:
    """The elements of a list, an array, a tensor or a generator; SessionError for what has none in order."""
    if isinstance(values, (list, tuple)):
        return list(values)
    if hasattr(values, "__array__"):  # of numpy, PyTorch and others
        array = as_array(values, name)
        if array.ndim:
            return list(array)
    elif isinstance(values, (Sequence, Iterator)) and not isinstance(values, (bytes, bytearray)):
        return list(values)
    raise SessionError(
        f"{name}: {given.shown(values)} was given, expected a text or a list of token ids for each prompt"
    )


def _tokenizer_or_none(session: Session[Any]) -> Tokenizer | None:
    has_one = is_there(session.metadata.folder / contract.TOKENIZER_FILE, error=SessionError)
    return session.tokenizer if has_one else None


def _result(decoding: Decoding, tokenizer: Tokenizer | None) -> Generations:
    return Generations(
        tuple(
            Generation(
                prompt,
                tokens,
                None if tokenizer is None else tokenizer.decode(tokens, after=prompt),
                reason,
            )
            for prompt, tokens, reason in zip(
                decoding.prompts, decoding.tokens, decoding.reasons, strict=True
            )
        ),
        decoding.timings(),
    )
