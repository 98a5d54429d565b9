"""The checks of values that others wrote: which values a rule takes, and what the error of another says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mamba_export.errors import MambaExportError, SessionError
from mamba_export.fields import (
    Boolean,
    Choice,
    Either,
    Fields,
    Integer,
    ListOf,
    Number,
    Object,
    OrNone,
    Rule,
    Text,
    shown,
)
from mamba_export.models import MambaConfig

ABSURD = [
    None, True, "1", "", [], {}, [1], {"a": 1}, -1, 0.5, 2**31, 2**63, -(10**400), 10**400, math.nan, math.inf,
    -math.inf, 1e308, 1e-320, b"1", object(), 1j,
]  # fmt: skip
HUGE = 10**10000  # longer than Python prints


@pytest.mark.parametrize(
    ("rule", "taken", "words"),
    [
        (Integer(), [0, 1, 2**31 - 1], "an integer from 0 to 2147483647"),
        (Integer(-1, 3), [-1, 3], "an integer from -1 to 3"),
        (Number(), [0, -1.5, 3.4e38, 1e-320, -(2**100)], "a finite number"),
        (Number(0), [0, 1e-320, 2**31], "a finite number of at least 0"),
        (Number(above=0), [1e-320, 2], "a finite number above 0"),
        (Boolean(), [True, False], "true or false"),
        (Text(), ["", "a\nb"], "a text"),
        (Text(r"\d+", "digits"), ["12"], "digits"),
        (Choice(["a", "b"]), ["a", "b"], "one of a, b"),
        (OrNone(Integer(1)), [None, 1], "an integer from 1 to 2147483647, or null"),
        (Either(Choice(["auto"]), Integer(1)), ["auto", 1], "one of auto, or an integer from 1"),
        (ListOf(Integer(1), 2, 2), [[1, 2]], "a list of 2 to 2, each an integer from 1"),
        (Object(), [{}, {"a": None}], "an object"),
        (Object(Text()), [{}, {"a": "b"}], "an object, each field a text"),
    ],
    ids=str,
)
def test_what_a_rule_takes(rule: Rule[Any], taken: list[Any], words: str) -> None:
    assert str(rule).startswith(words)
    for value in taken:
        assert rule.holds(value), value
        assert rule.convert(value) == value


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        (Integer(), []),
        (Number(), [-1, 0.5, 2**31, 2**63, 1e-320]),
        (Number(0), [0.5, 2**31, 2**63, 1e-320]),
        (Boolean(), [True]),
        (Text(r"\d+"), ["1"]),
        (Choice(["a"]), []),
        (ListOf(Integer(1)), [[], [1]]),
        (Object(Text()), [{}]),
    ],
    ids=str,
)
def test_no_rule_takes_the_absurd_or_raises(rule: Rule[Any], taken: list[Any]) -> None:
    found = [value for value in [*ABSURD, HUGE, [HUGE], {"a": HUGE}] if rule.holds(value)]
    assert [type(value) for value in found] == [type(value) for value in taken]
    assert found == taken


def test_any_value_is_shown_in_one_short_line() -> None:
    for value in (*ABSURD, HUGE, [HUGE], {"a": HUGE}, "x" * 10**6, [1] * 10**6, "a\nb"):
        assert 0 < len(shown(value)) <= 80
        assert "\n" not in shown(value)


def fields(data: Any) -> Fields:
    return Fields(data, lambda problem: SessionError(f"file.json: {problem}"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "file.json: a is missing"),
        ([], "file.json: the content is [], expected an object"),
        ({"a": 3}, "file.json: a is 3, expected an object"),
        ({"a": {}}, "file.json: a.b is missing"),
        ({"a": {"b": {}}}, "file.json: a.b is {}, expected a list"),
        ({"a": {"b": [{"c": 1}, 2]}}, "file.json: a.b[1] is 2, expected an object"),
        ({"a": {"b": [{"c": 1}, {}]}}, "file.json: a.b[1].c is missing"),
        (
            {"a": {"b": [{"c": -1}]}},
            "file.json: a.b[0].c is -1, expected an integer from 0 to 2147483647",
        ),
    ],
)
def test_errors_name_the_field(data: Any, message: str) -> None:
    with pytest.raises(SessionError) as caught:
        [one.take("c", Integer()) for one in fields(data).inside("a").each("b")]
    assert str(caught.value) == message


def test_what_is_taken() -> None:
    one = fields({"a": {"b": [{"c": 3}, {"c": 4}]}, "n": 2})
    assert [field.take("c", Integer()) for field in one.inside("a").each("b")] == [3, 4]
    assert type(one.take("n", Number())) is float
    assert (one.get("n"), one.get("absent")) == (2, None)


NUMBERS = {
    "d_model": 24, "n_layer": 2, "vocab_size": 96, "d_state": 8, "d_conv": 4, "expand": 2, "d_inner": 40,
    "dt_rank": 5,
    "norm_epsilon": 1e-5, "bcdt_norm_epsilon": 1e-6, "dt_min": 1e-3, "dt_max": 1e-1, "dt_floor": 1e-4,
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_a_configuration_takes_no_absurd_number(name: str) -> None:
    assert MambaConfig.from_fields(NUMBERS) == MambaConfig(**NUMBERS)
    for value in (math.nan, math.inf, -1, 10**400, 1e39, True, "2", [2], HUGE):
        with pytest.raises(MambaExportError, match=f"config: {name} is .*, expected ") as caught:
            MambaConfig(**{**NUMBERS, name: value})
        assert "\n" not in str(caught.value)


def test_a_configuration_that_is_none() -> None:
    for changes, message in (
        ({"d_model": ...}, "config: d_model is missing"),
        ({"width": 3}, "config: 'width' is no field"),
        ({"bias": 1}, "config: bias is 1, expected true or false"),
        (
            {"d_model": 2**30, "expand": 4, "d_inner": None},
            "d_model 1073741824 times expand 4 is more",
        ),
    ):
        content = {key: value for key, value in {**NUMBERS, **changes}.items() if value is not ...}
        with pytest.raises(MambaExportError, match=message):
            MambaConfig.from_fields(content)
