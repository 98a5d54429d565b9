"""Running exported models in ONNX Runtime. Needs no PyTorch.

``OrtSession(folder).generate("In the beginning")`` continues a text; ``run(input_ids, state)`` is for those
who drive the loop themselves. Everything is imported on first use.

ONNX Runtime is imported by modules of this package alone, which Python imports after this file: it switches
ONNX Runtime's telemetry off, once for all of them. The wheels of Linux have it from 1.32 on: some ten seconds
after the import they look up a host of Microsoft's and open a database in ~/.cache, and
``onnxruntime.disable_telemetry_events()`` comes too late for that.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mamba_export.lazy import on_first_use

if TYPE_CHECKING:
    from mamba_export.backends.onnxruntime.session import OrtSession
    from mamba_export.backends.onnxruntime.state import OrtState
    from mamba_export.folder.metadata import Metadata, read_metadata
    from mamba_export.generation.results import Generation, Generations, Timings
    from mamba_export.generation.sampling import Sampling

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # a user's own value, as 0, stays

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "Generation": "mamba_export.generation.results",
        "Generations": "mamba_export.generation.results",
        "Metadata": "mamba_export.folder.metadata",
        "OrtSession": "mamba_export.backends.onnxruntime.session",
        "OrtState": "mamba_export.backends.onnxruntime.state",
        "Sampling": "mamba_export.generation.sampling",
        "Timings": "mamba_export.generation.results",
        "read_metadata": "mamba_export.folder.metadata",
    },
)

__all__ = [
    "Generation",
    "Generations",
    "Metadata",
    "OrtSession",
    "OrtState",
    "Sampling",
    "Timings",
    "read_metadata",
]
