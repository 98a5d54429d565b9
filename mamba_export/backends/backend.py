"""What a runtime tells of itself: a row of the registry, and a way to run an exported file that is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line reads rows for its options: quickly, and without numpy
    import numpy as np

    from mamba_export.generation.generate import TextSession

Inputs = dict[str, "np.ndarray"]
"""Of a one-node graph, in fp32."""

Graph = Callable[[Inputs], "list[np.ndarray]"]
"""A one-node graph, loaded: from its inputs to its outputs."""


@dataclass(frozen=True)
class Backend:
    """A way to run an exported file that this machine has.

    Args:
        name: for a report, such as "onnxruntime CPU, native".
        open_model: a session on an exported folder; raises SessionError where it cannot be loaded, and
            MissingKernelError where the runtime has no kernel of the file's dtype for one of its nodes.
        open_graph: loads a serialised graph of one node of our domain, with its function.
        missing_dtypes: dtypes, of files or of packed weights, whose whole models it cannot run, each with the
            reason in one line.
        exact_products: it multiplies numbers of 16 bits in fp32, as CPUs do and tensor cores do not: an fp32
            state is then held to fp32's bound.
    """

    name: str
    open_model: Callable[[Path], Any]
    open_graph: Callable[[bytes], Graph]
    missing_dtypes: Mapping[str, str] = field(default_factory=dict)
    exact_products: bool = False

    def run_graph(self, model: bytes, inputs: Inputs) -> list[np.ndarray]:
        """Run a serialised one-node graph once."""
        return self.open_graph(model)(inputs)


@dataclass(frozen=True)
class Absent:
    """A way to run an exported file that this machine does not have.

    Args:
        name: for a report.
        reason: one line.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Runtime:
    """A folder of ``mamba_export.backends``: what can be asked of it, without importing the runtime.

    Args:
        option: of ``mamba-export run --backend``.
        title: for people.
        variants: options of ``mamba-export verify --backend``, each with what it runs.
        providers: what ``mamba-export run --provider`` may choose among; none where there is no choice.
        open_session: a session on (an exported folder, one of ``providers`` or None for the best, CPU
            threads or None). Raises MambaExportError.
        find: the backend of (one of ``variants``, an exported folder), or why it is not here.
    """

    option: str
    title: str
    variants: Mapping[str, str]
    open_session: Callable[[Path, str | None, int | None], TextSession]
    find: Callable[[str, Path], Backend | Absent]
    providers: tuple[str, ...] = ()
