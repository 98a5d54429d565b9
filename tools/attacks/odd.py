"""Odd values: of JSON, of options, of paths, of text."""

from __future__ import annotations

import json
from random import Random
from typing import Any


class Raw(str):
    """JSON text that json.dumps would not write: NaN, 1e400, a number of 400 digits."""


OUTSIDE = "../../outside/secret.txt"
"""A path that leads out of an attempt's folder: what an attempt names itself it may read."""

HOSTILE_TEXTS = (
    "",
    "x",
    " ",
    "\0",
    "\x1b[31mred\x1b[0m",
    "\x9b2J",
    "\u202eright to left",
    "[bold]markup[/nope]",
    "[/]",
    "a\nerror: b",
    OUTSIDE,
    "/proc/self/mem",
    "/dev/zero",
    "$(touch planted)",
    "`touch planted`",
    "'; touch planted; '",
    "%s%n{0}{x!r:>999}",
    "~",
    "~nobody-of-this-name",
    "-",
    "--force",
    "NaN",
    "é",
    "\U0001f40d",
    "a" * 300,
    "a" * 100_000,
)

ODD_NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    7,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**63 - 1,
    2**63,
    2**64,
    10**400,
    0.5,
    -0.0,
    1e-40,
    1e308,
    Raw("1e400"),
    Raw("-1e400"),
    Raw("NaN"),
    Raw("Infinity"),
    Raw("-Infinity"),
)

ODD_JSON: tuple[Any, ...] = (
    None,
    True,
    False,
    *ODD_NUMBERS,
    *HOSTILE_TEXTS,
    Raw('"\\ud800"'),
    [],
    {},
    [0],
    [None],
    ["x"],
    [[]],
    {"x": 0},
    "1",
    "16",
    Raw("[" * 100_000 + "]" * 100_000),
    Raw('{"a":' * 2_000 + "0" + "}" * 2_000),
    list(range(1000)),
)

ODD_ARGUMENTS = (
    *(text.replace("\0", "") for text in HOSTILE_TEXTS),
    *(str(number) for number in ODD_NUMBERS),
    "1,2,3",
    "3,2,1",
    "1,,3",
    "0,0,0",
    "-1,1,2",
    "1,1,2147483648",
    "1e3",
    "0x10",
    "\uff11\uff12",  # digits of another script
    "1_000",
    " 1 ",
    "nan",
    "inf",
    "\udce9",  # an undecodable byte of a command line
    "4G",
    "1T",
    "99999999999G",
    "auto",
)


def dumps(value: Any) -> str:
    """JSON with ``Raw`` texts as they are, and tuples of pairs as objects, so that a key may occur twice."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return dumps(tuple(value.items()))
    if isinstance(value, tuple):
        return "{" + ", ".join(f"{json.dumps(key)}: {dumps(one)}" for key, one in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return json.dumps(value)


def short(value: Any) -> str:
    """A value for a report: one line, not long."""
    text = ascii(str(value) if isinstance(value, Raw) else value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def odd_json(rng: Random) -> Any:
    """One of the odd values."""
    return rng.choice(ODD_JSON)
