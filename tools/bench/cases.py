"""Which models to time at which sizes, and the folders that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.published import config_of
from bench.random_folder import fill_weights, write_graph
from mamba_export import contract
from mamba_export.contract.weights import Weights
from mamba_export.errors import MambaExportError
from mamba_export.folder.metadata import read_metadata
from mamba_export.models import ModelConfig

SIZES = ("130m", "1.4b", "2.8b", "mamba2-130m", "mamba2-1.3b", "mamba2-2.7b")
CPU_SIZES = ("130m", "mamba2-130m")
LENGTHS = (512, 2048, 8192)
BATCHES = (1, 8, 64)
PREFILL_BATCHES = (1,)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Cases:
    """What to time.

    Args:
        sizes: published sizes.
        lengths: tokens of a prompt, for prefill.
        batches: sequences at once, for decode.
        prefill_batches: the same for prefill.
        dtype: of the weights.
        weights: how the matrices of products are stored; None for in ``dtype``.
        state: dtype of Mamba-2's recurrent states; None for fp32. mamba_ssm's have the weights' dtype.
        prefill, decode: whether to time each.
        graphs: folder with a subfolder a size that ``prepare_graphs`` wrote; None to make them here.
        mamba_ssm, transformers: whether to time these where they are installed. transformers loops over
            the steps in Python without further packages, so it is timed for the first size, batch 1 and
            the shortest prompt alone.
    """

    sizes: Sequence[str] = SIZES
    lengths: Sequence[int] = LENGTHS
    batches: Sequence[int] = BATCHES
    prefill_batches: Sequence[int] = PREFILL_BATCHES
    dtype: str = "fp16"
    weights: Weights | None = None
    state: str | None = None
    prefill: bool = True
    decode: bool = True
    graphs: Path | None = None
    mamba_ssm: bool = True
    transformers: bool = False

    def prefill_sizes(self, size: str) -> Iterator[dict[str, Any]]:
        """The sizes of each prefill of a model."""
        for batch in self.prefill_batches if self.prefill else ():
            for length in self.lengths:
                yield {**self.model_sizes(size), "batch": batch, "length": length}

    def decode_sizes(self, size: str) -> Iterator[dict[str, Any]]:
        """The sizes of each decode of a model."""
        for batch in self.batches if self.decode else ():
            yield {**self.model_sizes(size), "batch": batch}

    def model_sizes(self, size: str) -> dict[str, Any]:
        """What a model's row begins with."""
        packed = {} if self.weights is None else {"weights": str(self.weights)}
        states = {} if self.state is None else {"state": self.state}
        return {"model": size, "dtype": self.dtype, **packed, **states}


def prepare_graphs(folder: Path, cases: Cases, progress: Progress) -> None:
    """Write the graph of each size under ``folder``, without weights: the slow part, and a small one."""
    for size in cases.sizes:
        _write_graph(config_of(size), size, folder / size, cases, progress)


def _write_graph(
    config: ModelConfig, size: str, folder: Path, cases: Cases, progress: Progress
) -> None:
    progress(f"tracing the {size} shape")
    write_graph(
        config,
        folder,
        dtype=cases.dtype,
        weights=cases.weights,
        state_dtype=cases.state,
        name=size,
    )


def whole_folder(
    config: ModelConfig, size: str, cases: Cases, temporary: Path, progress: Progress
) -> Path:
    """A folder that can be run: the prepared graph or a new one, and weights.

    Raises:
        MambaExportError: there is no prepared graph of that size, or it is of another dtype, of other
            weights or of other states.
    """
    folder = temporary / size
    if cases.graphs is None:
        _write_graph(config, size, folder, cases, progress)
    else:
        prepared = cases.graphs / size
        if not (prepared / contract.MODEL_FILE).is_file():
            raise MambaExportError(f"{prepared} holds no graph: make it with --prepare")
        _check_prepared(prepared, size, cases)
        folder.mkdir()
        for file in (contract.MODEL_FILE, contract.METADATA_FILE):
            (folder / file).write_bytes((prepared / file).read_bytes())
    progress(f"writing weights of the {size} shape")
    fill_weights(folder)
    return folder


def _check_prepared(folder: Path, size: str, cases: Cases) -> None:
    metadata = read_metadata(folder)
    states = {
        state.past.dtype for state in metadata.states if state.name.endswith("recurrent_state")
    }
    held = replace(
        cases,
        dtype=metadata.dtype,
        weights=metadata.weights,
        state=None if states == {"fp32"} else ", ".join(sorted(states)),
    ).model_sizes(size)
    asked = cases.model_sizes(size)
    if cases.state == "fp32":
        del asked["state"]  # as without the option
    if held != asked:
        raise MambaExportError(
            f"{folder} is a graph of {_told(held)}, not of {_told(asked)}: make it with --prepare and "
            "the same options"
        )


def _told(sizes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def tokens(config: ModelConfig, batch: int, length: int) -> np.ndarray:
    """Random tokens (batch, length)."""
    return np.random.default_rng(0).integers(0, config.vocab_size, (batch, length))
