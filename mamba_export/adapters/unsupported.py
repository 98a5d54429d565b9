"""What the adapters do not compute: one way to say so."""

from __future__ import annotations

from typing import NoReturn

PACKED = "run the sequences of a packed batch one by one"
"""The reason where a call has the indices of a packed batch."""


def refuse(what: str, reason: str) -> NoReturn:
    """Raise NotImplementedError in one line that names the argument or function.

    Args:
        what: the call as its user wrote it, such as "selective_scan_fn with a complex A".
        reason: why, or what to do instead.
    """
    raise NotImplementedError(f"mamba_export.adapters: {what} is not there: {reason}")
