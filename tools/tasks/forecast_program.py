"""The interface of an exported forecaster: names and shapes, and what runs it a sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.errors import MambaExportError
from mamba_export.folder.metadata import Metadata
from tasks.plant import CHANNELS

INPUT, OUTPUTS = "readings", ("forecast", "deviation")
"""Each is (batch, length, 3) fp32, in the units of ``plant.CHANNELS``."""

Step = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""(batch, 3) readings -> by ``OUTPUTS``, of the next reading, (batch, 3) each."""


def open_step(session: OrtSession) -> Step:
    """What reads one plant's samples one after another.

    Raises:
        MambaExportError: the session's program is no forecaster of a plant.
    """
    check_forecaster(session.metadata)
    return session.streamer().step


def check_forecaster(metadata: Metadata) -> None:
    """Raise MambaExportError unless an exported folder holds a forecaster of a plant."""
    names = [value.name for value in (*metadata.inputs, *metadata.outputs)]
    sizes = {value.shape[2:] for value in (*metadata.inputs, *metadata.outputs)}
    if names != [INPUT, *OUTPUTS] or sizes != {(len(CHANNELS),)}:
        raise MambaExportError(
            f"{metadata.folder} is no forecaster of a plant: it holds {', '.join(names)}, expected "
            f"{', '.join([INPUT, *OUTPUTS])} of {len(CHANNELS)} channels"
        )
