"""What is exported: a module with named inputs, outputs and states. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def split_axis(axis: str) -> tuple[int, str]:
    """A dynamic axis as a multiple of a named size: (4, "rows") of "4*rows", (1, "rows") of "rows"."""
    factor, times, name = axis.partition("*")
    return (
        (int(factor), name) if times and factor.isdecimal() and name.isidentifier() else (1, axis)
    )


def _number(axis: str, sizes: Mapping[str, int]) -> int:
    factor, name = (1, axis) if axis in sizes else split_axis(axis)
    return factor * sizes[name]


@dataclass(frozen=True)
class Value:
    """A named input or output of a program.

    Args:
        name: in the graph.
        dtype: "fp32", "fp16", "bf16", "int64" or another of ``folder.dtypes``.
        shape: numbers, and names where a size is dynamic ("batch", "length", or any other); "4*rows" is four
            times the size "rows".
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def layout(self) -> str:
        """The shape for people: ``(batch, length, 32)``."""
        return f"({', '.join(map(str, self.shape))})"

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers. KeyError for a dynamic size without one."""
        return tuple(_number(size, sizes) if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True)
class State:
    """What a program remembers between calls: an input, and the output of the call before that it takes.

    Args:
        name: for people and messages, such as "layers.0.recurrent_state".
        past, present: the input and the output. Their dtypes agree; their shapes too, but for ``grows``.
        start: the value of every element at the start of a sequence.
        grows: index of the axis along which the state grows by the steps that were read (a key/value cache, of
            length 0 at the start); None for a state of fixed size.
        longest: steps that the program's positions reach, of a state that grows; None for any.
    """

    name: str
    past: Value
    present: Value
    start: float = 0.0
    grows: int | None = None
    longest: int | None = None

    @classmethod
    def of(
        cls,
        name: str,
        past: str,
        present: str,
        dtype: str,
        shape: tuple[int | str, ...],
        start: float = 0.0,
        grows: int | None = None,
        longest: int | None = None,
    ) -> State:
        """A state from its names and the shape of its past.

        The axis that grows is called "<its name>_after" in the present's shape.

        Raises:
            ValueError: ``grows`` is no axis after the first (the batch), or that axis has a fixed size; or
                ``longest`` is given for a state that does not grow.
        """
        after = list(shape)
        if grows is not None:
            if not 0 < grows < len(shape) or not isinstance(shape[grows], str):
                raise ValueError(f"state {name} cannot grow along axis {grows} of shape {shape}")
            after[grows] = f"{shape[grows]}_after"
        elif longest is not None:
            raise ValueError(f"state {name} does not grow, and has a longest")
        values = Value(past, dtype, shape), Value(present, dtype, tuple(after))
        return cls(name, *values, start, grows, longest)

    @property
    def grown_axis(self) -> str | None:
        """Name of the past's axis that grows; None for a state of fixed size."""
        return None if self.grows is None else str(self.past.shape[self.grows])


@dataclass(frozen=True)
class Tokens:
    """What makes a program a language model.

    Args:
        vocab_size: token ids are in [0, vocab_size).
        eos_token_id: token that ends a text, several of which any one does, or None.
        last_logits_only: the program returns the last step's logits alone.
    """

    vocab_size: int
    eos_token_id: int | tuple[int, ...] | None = None
    last_logits_only: bool = False

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text, without those that the vocabulary has not."""
        ids = self.eos_token_id
        several = () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
        return tuple(token for token in several if 0 <= token < self.vocab_size)


@dataclass(frozen=True)
class Program:
    """A module and its interface: what export takes, and what the metadata file tells of.

    Args:
        module: an ``nn.Module`` whose forward takes the inputs, then the states' pasts, as positional tensors,
            and returns the outputs, then the states' presents.
        inputs, outputs: without the states'.
        states: in graph order.
        tokens: of a language model: its first input is token ids, its first output logits; None for another.
    """

    module: Any
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    states: tuple[State, ...] = ()
    tokens: Tokens | None = None
