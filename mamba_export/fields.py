"""Values that others wrote, and what is expected of them: the one set of checks.

A ``Rule`` says what a value must be; ``Fields`` applies rules to an object of a JSON file, and its errors name
the file and the field.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from mamba_export.errors import MambaExportError

LARGEST_SIZE = 2**31 - 1
"""Of an axis, a count or an option: what the runtimes' 32-bit integers hold."""

LARGEST_NUMBER = 3.4028234663852886e38
"""The largest fp32."""

T = TypeVar("T")


class Rule(ABC, Generic[T]):
    """What a value must be; ``str`` of it completes "expected ..."."""

    @abstractmethod
    def holds(self, value: object) -> bool:
        """Whether a value is of this kind and in its range; never raises."""

    @abstractmethod
    def __str__(self) -> str: ...

    def convert(self, value: Any) -> T:
        """A value for which it holds, as our type."""
        converted: T = value
        return converted


@dataclass(frozen=True)
class Integer(Rule[int]):
    """An integer in a range; true and false are none."""

    minimum: int = 0
    maximum: int = LARGEST_SIZE

    def holds(self, value: object) -> bool:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and self.minimum <= value <= self.maximum  # type: ignore[operator]

    def __str__(self) -> str:
        return f"an integer from {self.minimum} to {self.maximum}"


@dataclass(frozen=True)
class Number(Rule[float]):
    """A finite number, whole ones included, in a range that fp32 holds.

    Args:
        minimum: the smallest.
        above: a bound that is itself excluded, instead.
    """

    minimum: float = -LARGEST_NUMBER
    above: float | None = None

    def holds(self, value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        in_range = self.minimum <= value <= LARGEST_NUMBER  # false of NaN
        return in_range and (self.above is None or value > self.above)

    def convert(self, value: Any) -> float:
        return float(value)

    def __str__(self) -> str:
        if self.above is not None:
            return f"a finite number above {self.above:g}"
        if self.minimum == -LARGEST_NUMBER:
            return "a finite number"
        return f"a finite number of at least {self.minimum:g}"


@dataclass(frozen=True)
class Boolean(Rule[bool]):
    """True or false."""

    def holds(self, value: object) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text(Rule[str]):
    """A text.

    Args:
        pattern: regular expression of the whole of it.
        described: what it then is, for people.
    """

    pattern: str = "(?s:.*)"
    described: str = "a text"

    def holds(self, value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.described


@dataclass(frozen=True)
class Choice(Rule[str]):
    """One of some words."""

    words: Sequence[str]

    def holds(self, value: object) -> bool:
        return isinstance(value, str) and value in self.words

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


@dataclass(frozen=True)
class OrNone(Rule[T | None]):
    """What another rule says, or null."""

    rule: Rule[T]

    def holds(self, value: object) -> bool:
        return value is None or self.rule.holds(value)

    def convert(self, value: Any) -> T | None:
        return None if value is None else self.rule.convert(value)

    def __str__(self) -> str:
        return f"{self.rule}, or null"


@dataclass(frozen=True)
class Either(Rule[Any]):
    """What one of two rules says."""

    first: Rule[Any]
    second: Rule[Any]

    def holds(self, value: object) -> bool:
        return self.first.holds(value) or self.second.holds(value)

    def convert(self, value: Any) -> Any:
        return (self.first if self.first.holds(value) else self.second).convert(value)

    def __str__(self) -> str:
        return f"{self.first}, or {self.second}"


@dataclass(frozen=True)
class ListOf(Rule[list[T]]):
    """A list whose elements another rule is of.

    Args:
        rule: of each.
        shortest, longest: how many.
    """

    rule: Rule[T]
    shortest: int = 0
    longest: int = 1 << 20

    def holds(self, value: object) -> bool:
        is_list = isinstance(value, list | tuple) and self.shortest <= len(value) <= self.longest
        return is_list and all(map(self.rule.holds, value))  # type: ignore[call-overload]

    def convert(self, value: Any) -> list[T]:
        return [self.rule.convert(one) for one in value]

    def __str__(self) -> str:
        return f"a list of {self.shortest} to {self.longest}, each {self.rule}"


@dataclass(frozen=True)
class Object(Rule[dict[str, Any]]):
    """An object.

    Args:
        rule: of the value of each field; None for any.
    """

    rule: Rule[Any] | None = None

    def holds(self, value: object) -> bool:
        if not isinstance(value, dict):
            return False
        return self.rule is None or all(map(self.rule.holds, value.values()))

    def __str__(self) -> str:
        return "an object" + ("" if self.rule is None else f", each field {self.rule}")


TOKEN_ID = Integer(-LARGEST_SIZE)
"""A token; some configurations say -1 for none."""

END_TOKENS: Rule[int | list[int] | None] = OrNone(Either(TOKEN_ID, ListOf(TOKEN_ID)))
"""Token that ends a text, several of which any one does, or null."""


def shown(value: object) -> str:
    """A value for a message: short, in one line, and never slow."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of some {math.ceil(value.bit_length() * 0.30103)} digits"
    if isinstance(value, list | dict) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # it holds an integer too long to print
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


class Fields:
    """The fields of an object in a JSON file.

    Args:
        data: the object.
        complain: the error of a problem in words, "tokens.vocab_size is -1, expected ..."; it names the file.
        where: what precedes the names of the fields, such as "tokens.".

    Every method but ``get`` raises what ``complain`` makes.
    """

    def __init__(
        self, data: object, complain: Callable[[str], MambaExportError], where: str = ""
    ) -> None:
        if not isinstance(data, dict):
            name = where.removesuffix(".") or "the content"
            raise complain(f"{name} is {shown(data)}, expected an object")
        self.data: Mapping[str, Any] = data
        self.complain = complain
        self.where = where

    def get(self, name: str) -> Any:
        """A field as it stands, None where it is absent."""
        return self.data.get(name)

    def require(self, name: str) -> Any:
        """A field as it stands, which must be there."""
        if name not in self.data:
            raise self.complain(f"{self.where}{name} is missing")
        return self.data[name]

    def take(self, name: str, rule: Rule[T]) -> T:
        """A field, which must be there and as the rule says."""
        value = self.require(name)
        if not rule.holds(value):
            self.refuse(name, f", expected {rule}")
        return rule.convert(value)

    def inside(self, name: str) -> Fields:
        """The fields of an object in this one."""
        return Fields(self.require(name), self.complain, f"{self.where}{name}.")

    def each(self, name: str) -> list[Fields]:
        """The fields of each object in a list in this one."""
        value = self.require(name)
        if not isinstance(value, list):
            self.refuse(name, ", expected a list")
        return [
            Fields(one, self.complain, f"{self.where}{name}[{index}].")
            for index, one in enumerate(value)
        ]

    def refuse(self, name: str, what: str) -> NoReturn:
        """Raise: what a field says is not possible; ``what`` follows "name is value" and its punctuation."""
        raise self.complain(f"{self.where}{name} is {shown(self.get(name))}{what}")
