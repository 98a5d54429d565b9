"""Running exported models in ONNX Runtime. Needs no PyTorch.

``OrtSession(folder).generate("In the beginning")`` continues a text; ``run(input_ids, state)`` is for those
who drive the loop themselves.
"""

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.onnxruntime.state import OrtState
from mamba_export.folder.metadata import Metadata, read_metadata
from mamba_export.generation.results import Generation, Generations, Timings
from mamba_export.generation.sampling import Sampling

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
