"""Checks of what a caller feeds a session: the part of a sequence to read."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import Metadata


def check_sequence(sequence: ArrayLike, metadata: Metadata) -> np.ndarray:
    """The graph's first input as an array of the right dtype.

    Args:
        sequence: token ids (batch, length), or floats (batch, length, d_model).
        metadata: says which.

    Returns:
        int64 token ids, or floats in the file's dtype.

    Raises:
        SessionError: not of that shape or kind, batch or length 0 (which would end the process inside
            ONNX Runtime), or a token id outside the vocabulary.
    """
    info = metadata.sequence
    try:
        array = np.asarray(sequence)
    except ValueError as error:
        raise SessionError(
            f"{info.name} is ragged: sequences of one batch have one length; call run for each length"
        ) from error
    layout = "(" + ", ".join(map(str, info.shape)) + ")"
    if array.ndim != len(info.shape):
        raise SessionError(f"{info.name} has shape {array.shape}, expected {layout}")
    if array.shape[0] == 0 or array.shape[1] == 0:
        raise SessionError(
            f"{info.name} has shape {array.shape}, expected {layout} with batch and length at least 1"
        )
    if array.shape != info.resolve(*array.shape[:2]):
        raise SessionError(f"{info.name} has shape {array.shape}, expected {layout}")
    if not metadata.takes_tokens:
        if array.dtype.kind not in "fiu" and array.dtype not in NUMPY_DTYPES.values():
            raise SessionError(f"{info.name} has dtype {array.dtype}, expected numbers")
        return array.astype(NUMPY_DTYPES[info.dtype], copy=False)
    if array.dtype.kind not in "iu":
        raise SessionError(f"{info.name} has dtype {array.dtype}, expected integers")
    least, most = int(array.min()), int(array.max())
    if least < 0 or most >= metadata.vocab_size:
        wrong = least if least < 0 else most
        raise SessionError(
            f"token id {wrong} is outside the vocabulary: ids are in [0, {metadata.vocab_size})"
        )
    return array.astype(np.int64, copy=False)
