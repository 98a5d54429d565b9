"""Pure functions that meet others' values: hypothesis draws them, and shrinks what it finds.

Each answers or raises one of our errors in one printable line, whatever the value.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mamba_export import untrusted
from mamba_export.backends.tensorrt.options import parse_sizes, parse_workspace
from mamba_export.backends.tensorrt.profiles import parse_range
from mamba_export.cli.app import app  # noqa: F401  # loads what the command line parses with
from mamba_export.contract.program import Tokens, Value
from mamba_export.errors import MambaExportError, SessionError, first_line, named_first_line
from mamba_export.folder.metadata import Metadata
from mamba_export.generation.sampling import Sampler, Sampling, warp
from mamba_export.generation.values import check_inputs
from mamba_export.printing import printable, printable_lines

EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

texts = st.text(max_size=60) | st.sampled_from(
    ["\x1b[2J", "\ud800", "\u202e", "a\nb", "NaN", "1e400"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | texts
    | st.binary(max_size=20)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
nested = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
arrays = hnp.arrays(
    st.one_of(
        hnp.integer_dtypes(),
        hnp.unsigned_integer_dtypes(),
        hnp.floating_dtypes(),
        hnp.complex_number_dtypes(),
        hnp.boolean_dtypes(),
        hnp.datetime64_dtypes(),
        hnp.unicode_string_dtypes(max_len=4),
    ),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
)


@contextlib.contextmanager
def answers_or_says_why() -> Iterator[None]:
    """Nothing but one of our errors may come out, and its message has text."""
    try:
        yield
    except MambaExportError as error:
        line = printable(str(error))
        assert line
        assert "\n" not in line
        assert "\x1b" not in line


@EXAMPLES
@given(texts | st.text())
def test_printable_is_one_line_without_controls(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() or all(ord(one) >= 0xA0 for one in shown if not one.isprintable())
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown
    shown.encode("utf-8")
    assert "\x1b" not in printable_lines(text)


@EXAMPLES
@given(texts)
def test_the_first_line_of_an_error_is_one(text: str) -> None:
    for error in (
        ValueError(text),
        OSError(text),
        KeyError(text),
        Exception(),
        ValueError(text, text),
    ):
        for line in (first_line(error), named_first_line(error)):
            assert line
            assert "\n" not in line


@EXAMPLES
@given(
    st.binary(max_size=300)
    | json_values.map(lambda value: json.dumps(value).encode("utf-8", "replace"))
)
def test_json_of_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with answers_or_says_why():
        value = untrusted.read_json(path)
        assert _finite(value)


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@EXAMPLES
@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: scalars
            for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
        },
    )
)
def test_sampling_of_any_values(options: dict[str, Any]) -> None:
    logits = np.linspace(-5, 5, 16, dtype=np.float32).reshape(2, 8)
    with answers_or_says_why():
        sampling = Sampling(**options)
        sampler = Sampler(sampling, [np.array([1]), np.array([2])], 8)
        tokens = sampler.sample(logits)
        assert tokens.shape == (2,)
        assert ((tokens >= 0) & (tokens < 8)).all()


@EXAMPLES
@given(
    hnp.arrays(np.float32, (2, 8), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.floats(min_value=0, max_value=1e30, exclude_min=True),
    st.integers(0, 20),
    st.floats(0, 1, exclude_min=True),
)
def test_warping_keeps_the_likeliest(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float
) -> None:
    with np.errstate(all="ignore"):
        scores = warp(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert (scores.max(axis=-1) == 0).all()
    assert np.isfinite(scores[np.arange(2), logits.argmax(axis=-1)]).all()


TOKENS = Metadata(
    folder=Path("out"),
    dtype="fp32",
    opset=20,
    inputs=(Value("input_ids", "int64", ("batch", "length")),),
    outputs=(Value("logits", "fp32", ("batch", "length", 8)),),
    states=(),
    tokens=Tokens(8, None, False),
    model=None,
    source={"path": None},
    versions={},
)


@EXAMPLES
@given(nested | arrays | st.dictionaries(texts, nested, max_size=2) | st.tuples(nested, nested))
def test_inputs_of_any_values(inputs: Any) -> None:
    with answers_or_says_why():
        tokens = check_inputs(inputs, TOKENS).first
        assert tokens.dtype == np.int64
        assert tokens.ndim == 2
        assert tokens.size
        assert ((tokens >= 0) & (tokens < 8)).all()


@EXAMPLES
@given(st.from_regex(r"[-+0-9,.e_ xMG\u0661]{0,20}", fullmatch=True) | texts)
def test_ranges_and_sizes_of_options(text: str) -> None:
    with answers_or_says_why():
        low, best, high = parse_range(text, "--batch")
        assert 1 <= low <= best <= high < 2**31
    with answers_or_says_why():
        assert 1 <= parse_workspace(text) < 2**63
    with answers_or_says_why():
        parse_sizes([f"height={text}", text])


def test_the_properties_are_not_empty() -> None:
    """``answers_or_says_why`` lets nothing else pass."""
    with pytest.raises(TypeError), answers_or_says_why():
        raise TypeError("x")
    with answers_or_says_why():
        raise SessionError("x")
