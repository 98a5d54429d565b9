"""How a user says which argument of a module's forward is a state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """An argument of forward that carries what an earlier call returned.

    Args:
        argument: its name in forward's signature.
        result: the result that continues it: its position among forward's results (nested tuples, lists and
            dicts counted flat), or its name in ``output_names`` or of the dict that forward returns.
        name: for people and messages; None for the argument's.
        start: value of every element at the start of a sequence.
        grows: axis along which the state grows by what was read, as a key/value cache does: it starts with
            length 0. None for a state of fixed size.
        longest: steps that the module's positions reach, of a state that grows: a run beyond them is refused.
            None for any.
    """

    argument: str
    result: int | str
    name: str | None = None
    start: float = 0.0
    grows: int | None = None
    longest: int | None = None
