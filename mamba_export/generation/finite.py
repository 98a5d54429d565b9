"""Numbers that are not finite, in what a program reads: a state would keep them from there on."""

from __future__ import annotations

import math

import numpy as np

from mamba_export.contract.program import Value
from mamba_export.errors import SessionError
from mamba_export.folder.metadata import Metadata

_FEW = 32
"""Numbers of a sample that Python adds up sooner (0.2 us) than NumPy looks at them (3 us)."""


def check_kept(array: np.ndarray, value: Value, metadata: Metadata) -> None:
    """Refuse what a program's states would keep: one NaN that was read makes all that follows NaN.

    A program without states may read what it likes. One of several inputs may read infinities: masks have them.

    Args:
        array: of an input, in the program's dtype.
        value: the input.
        metadata: of the program.

    Raises:
        SessionError: the input, and the first number that is not finite, with its place.
    """
    if not metadata.states or array.dtype.kind in "biu":
        return
    if array.size <= _FEW and math.isfinite(sum(array.ravel().tolist())):
        return
    wrong = np.isnan(array) if len(metadata.inputs) > 1 else ~np.isfinite(array)
    if not wrong.any():
        return
    place = np.unravel_index(int(wrong.argmax()), array.shape)
    at = ", ".join(map(str, place))
    raise SessionError(
        f"{value.name} has {array[place]} at [{at}], and the states would keep it from there on: give numbers "
        f"that {value.dtype} holds as finite ones"
    )
