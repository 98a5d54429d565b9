"""Running exported models in ONNX Runtime. Needs no PyTorch.

``OrtSession(folder).generate("In the beginning")`` continues a text; ``run(input_ids, state)`` is for those
who drive the loop themselves.
"""

from mamba_export.runtime.metadata import Metadata, read_metadata
from mamba_export.runtime.ort import OrtSession
from mamba_export.runtime.results import Generation, Generations, Timings
from mamba_export.runtime.sampling import Sampling
from mamba_export.runtime.state import OrtState

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
