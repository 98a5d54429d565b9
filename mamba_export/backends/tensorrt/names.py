"""Names of the files that a build writes, and what differs between TensorRT and TensorRT-RTX."""

from __future__ import annotations

from dataclasses import dataclass

ENGINE_FILE = "model.engine"
DESCRIPTION_FILE = "engine.json"
GRAPH_FILE = "model.tensorrt.onnx"
"""The graph as TensorRT's parser is to read it; its weights are those of model.onnx."""
DEPLOY_FILE = "DEPLOY.md"

DESCRIPTION_FORMAT = 1
"""Version of engine.json's layout."""


@dataclass(frozen=True)
class Kind:
    """One of NVIDIA's two runtimes, which share an API and nothing else.

    Args:
        name: in engine.json.
        option: on the command line.
        module: to import.
        title: for people.
        tag: first bytes of its engine files.
        install: how to get it.
        capabilities: compute capabilities that its engines run on; None where it is the one of the GPU
            that built the engine.
    """

    name: str
    option: str
    module: str
    title: str
    tag: bytes
    install: str
    capabilities: tuple[str, ...] | None


TENSORRT = Kind(
    name="tensorrt",
    option="tensorrt",
    module="tensorrt",
    title="TensorRT",
    tag=b"ftrt",
    install="pip install tensorrt, or JetPack's python3-libnvinfer",
    capabilities=None,
)
TENSORRT_RTX = Kind(
    name="tensorrt_rtx",
    option="tensorrt-rtx",
    module="tensorrt_rtx",
    title="TensorRT-RTX",
    tag=b"vtrt",
    install="pip install 'mamba_export[tensorrt]'",
    capabilities=("8.0", "8.6", "8.9", "12.0", "12.1"),
)
KINDS = (TENSORRT, TENSORRT_RTX)
