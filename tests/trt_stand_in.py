"""A stand-in for TensorRT and the driver under ``TrtSession``: no GPU.

The two are replaced at their thin seams (`Gpu`, `Execution`) by ones that keep device memory in host memory and
compute with ONNX Runtime. What TensorRT itself does on a GPU is not tried here.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime as ort

from mamba_export.backends.tensorrt import session as trt_module
from mamba_export.backends.tensorrt.cuda_driver import CudaError
from mamba_export.backends.tensorrt.description import EngineDescription, describe
from mamba_export.backends.tensorrt.options import BuildOptions
from mamba_export.backends.tensorrt.session import TrtSession
from mamba_export.folder.dtypes import NUMPY_DTYPES
from mamba_export.folder.metadata import read_metadata

MOST_LENGTH = 8


class FakeMemory:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.content = np.full(max(nbytes, 1), 0xFF, np.uint8)  # NaN in every float dtype
        self.address = self.content.ctypes.data


class FakeGpu:
    """Host memory under the interface of ``Gpu``."""

    index, name, capability = 0, "a fake GPU", "8.9"

    def __init__(self) -> None:
        self.live: weakref.WeakSet[FakeMemory] = weakref.WeakSet()
        self.graphs = 0
        self.launches = 0
        self.capture_fails = False

    def activate(self) -> None:
        pass

    def free_memory(self) -> int:
        return 1 << 30

    def allocate(self, nbytes: int) -> FakeMemory:
        memory = FakeMemory(nbytes)
        self.live.add(memory)
        return memory

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.zeros(shape, dtype)

    def stream(self) -> FakeStream:
        return FakeStream(self)


class FakeStream:
    """Does queued work at once, or records it while it captures."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.recorded: list[Callable[[], None]] | None = None

    def queue(self, work: Callable[[], None]) -> None:
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def upload(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.queue(lambda: ctypes.memmove(address, array.ctypes.data, array.nbytes))

    def download(self, array: np.ndarray, address: int) -> None:
        assert array.flags.c_contiguous
        self.queue(lambda: ctypes.memmove(array.ctypes.data, address, array.nbytes))

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self.queue(lambda: ctypes.memmove(target, source, nbytes))

    def zero(self, address: int, nbytes: int) -> None:
        self.queue(lambda: ctypes.memset(address, 0, nbytes))

    def synchronize(self) -> None:
        assert self.recorded is None, "a stream that captures cannot be waited for"

    def capture(self, work: Callable[[], None]) -> FakeGraph:
        if self.gpu.capture_fails:
            raise CudaError("CUDA: cannot be captured")
        self.recorded = []
        work()
        graph = FakeGraph(self.gpu, self.recorded)
        self.recorded = None
        self.gpu.graphs += 1
        return graph


class FakeGraph:
    def __init__(self, gpu: FakeGpu, work: list[Callable[[], None]]) -> None:
        self.gpu, self.work = gpu, work

    def launch(self) -> None:
        self.gpu.launches += 1
        for one in self.work:
            one()


class FakeExecution:
    """A run in ONNX Runtime between the addresses that were set, which must be inside the profile."""

    def __init__(self, engine: FakeEngine, profile: int) -> None:
        self.engine = engine
        self.profile = engine.description.profiles[profile]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        reads = name == self.engine.description.inputs[0]["name"]
        assert self.profile.takes(shape[0], shape[1] if reads else self.profile.length[0])
        self.shapes[name] = tuple(shape)

    def set_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def output_shape(self, name: str) -> tuple[int, ...]:
        kinds = {tensor["name"]: tensor["dtype"] for tensor in self.engine.description.inputs}
        zeros = {n: np.zeros(shape, NUMPY_DTYPES[kinds[n]]) for n, shape in self.shapes.items()}
        return tuple(self.engine.graph.run([name], zeros)[0].shape)

    def can_be_captured(self, stream: FakeStream) -> bool:
        return self.engine.capturable

    def enqueue(self, stream: FakeStream) -> None:
        self.engine.enqueued += 1
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        stream.queue(lambda: self.engine.compute(shapes, addresses))


class FakeEngine:
    def __init__(self, description: EngineDescription, gpu: FakeGpu, graph: ort.InferenceSession):
        self.description, self.gpu, self.graph = description, gpu, graph
        self.library = "a fake TensorRT"
        self.capturable = True
        self.enqueued = 0
        self.contexts = 0

    def execution(self, profile: int, stream: FakeStream) -> FakeExecution:
        self.contexts += 1
        return FakeExecution(self, profile)

    def compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feeds = {
            tensor["name"]: _at(
                addresses[tensor["name"]], shapes[tensor["name"]], tensor["dtype"]
            ).copy()
            for tensor in self.description.inputs
        }
        names = [tensor["name"] for tensor in self.description.outputs]
        for name, result in zip(names, self.graph.run(names, feeds), strict=True):
            ctypes.memmove(addresses[name], np.ascontiguousarray(result).ctypes.data, result.nbytes)


def _at(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    nbytes = int(np.prod(shape)) * NUMPY_DTYPES[dtype].itemsize
    content = (ctypes.c_ubyte * nbytes).from_address(address)
    return np.frombuffer(memoryview(content), NUMPY_DTYPES[dtype]).reshape(shape)


def fake_engine(folder: Path, **options: Any) -> FakeEngine:
    """The engine of an exported folder, for batches of 1 to 4 and lengths of 1 to ``MOST_LENGTH``."""
    metadata = read_metadata(folder)
    built = BuildOptions(batch=(1, 2, 4), length=(2, 4, MOST_LENGTH), **options)
    description = describe(
        metadata,
        runtime="tensorrt_rtx",
        profiles=built.profiles(metadata),
        plugins={},
        plugin_library=None,
    )
    graph = ort.InferenceSession(str(metadata.model_path), providers=["CPUExecutionProvider"])
    return FakeEngine(description, FakeGpu(), graph)


def on_engine(folder: Path) -> TrtSession:
    """A session on an engine of its own."""
    engine = fake_engine(folder)
    with mock.patch.object(trt_module, "open_engine", return_value=engine):
        return TrtSession(folder)
