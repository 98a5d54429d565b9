"""Python objects that nobody meant as an argument: numbers, containers, arrays, tensors, modules."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from attacks.odd import HOSTILE_TEXTS


def odd_numbers() -> tuple[Any, ...]:
    """Numbers, and what looks like one."""
    import numpy as np

    plain = (0, 1, -1, 2, 3.5, 2**31, 2**64, 10**12, 10**400, -0.0, 1e-40, True, None, 1 + 2j)
    arrays = (
        np.int64(2),
        np.int32(-1),
        np.float16(0.5),
        np.float64("nan"),
        np.array(3),
        np.array([3]),
    )
    return (*plain, float("nan"), float("inf"), "1", b"1", [], {}, *arrays)


def odd_things() -> tuple[Any, ...]:
    """Things of every kind."""
    import numpy as np
    import torch

    plain: tuple[Any, ...] = (
        None,
        0,
        -1,
        True,
        1.5,
        1 + 2j,
        range(3),
        set(),
        object(),
        Exception,
        print,
        (n for n in ([1], [3])),
    )
    texts = ("", "x", b"", b"x", bytearray(b"x"), *HOSTILE_TEXTS[:12], "\ud800")
    paths = (pathlib.Path(), pathlib.Path("model"))
    nested: tuple[Any, ...] = (
        [],
        [[]],
        [[1], [1, 2]],
        [[1, [2]]],
        [None],
        (),
        ([[1]],),
        {},
        {"input_ids": [[1]]},
        {"x": 1},
    )
    shapes = (
        np.array(1),
        np.array([1]),
        np.zeros((1, 0), int),
        np.zeros((0, 1), int),
        np.zeros((1,) * 30, int),
    )
    tokens = (np.array([[1]]), np.array([[-1]]), np.array([[256]]), np.array([[2**63]], np.uint64))
    layouts = (
        np.array([[1]], ">i4"),
        np.ones((2, 3), np.int8)[::-1],
        np.array([[1, 2]], order="F"),
    )
    dtypes = (
        *(np.array([[one]]) for one in (1.0, np.nan, 1 + 1j, "a", None)),
        np.array([["2020-01-01"]], "datetime64[D]"),
        np.zeros(3, [("a", int)]),
        np.ma.masked_array([[1]], [[True]]),
    )
    tensors = (
        torch.tensor([1, 2]),
        torch.tensor([[1, 2]]),
        torch.ones(1, 1, requires_grad=True),
        torch.empty(1, 1, device="meta"),
        torch.nn.Linear(2, 2),
        torch.float32,
    )
    return (*plain, *texts, *paths, *nested, *shapes, *tokens, *layouts, *dtypes, *tensors)


def shown(thing: Any) -> str:
    """A value for a report: one line, not long, and the same in every run."""
    return re.sub(r" at 0x[0-9a-f]+", "", f"{thing!r}".replace("\n", " "))[:100]
