"""What a session says, once, where its runs cannot be captured in CUDA graphs."""

from __future__ import annotations

import warnings

from mamba_export.errors import MambaExportWarning, SessionError


class Captures:
    """Whether a session captures its runs: until one could not be, as where the GPU's memory is short.

    Args:
        work: what then runs as it is, for people: "prompts are read".

    Attributes:
        problem: what a capture failed for, None where none has.
    """

    def __init__(self, work: str) -> None:
        self._work = work
        self.problem: str | None = None

    def give_up(self, error: SessionError) -> None:
        """Capture nothing from now on; a ``MambaExportWarning`` says so, the first time."""
        if self.problem is not None:  # another thread's
            return
        self.problem = str(error)
        warnings.warn(
            f"{self._work} without CUDA graphs, and slower: {error}",
            MambaExportWarning,
            stacklevel=3,
        )
