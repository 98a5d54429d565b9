"""A deserialised engine and its execution contexts: the thin layer between a session and TensorRT."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.cuda_driver import Gpu, Stream
from mamba_export.backends.tensorrt.description import EngineDescription, read_description
from mamba_export.backends.tensorrt.engine_checks import (
    check_engine_file,
    check_host_code,
    check_model,
)
from mamba_export.backends.tensorrt.library import Library
from mamba_export.backends.tensorrt.plugin import load_plugin
from mamba_export.errors import EngineError, SessionError
from mamba_export.folder.metadata import Metadata
from mamba_export.untrusted import read_bytes

_LARGEST_ENGINE = 1 << 40  # bytes: it holds the weights, and memory on the GPU was compared before


class Execution:
    """An execution context on one profile. Not for two threads at once."""

    def __init__(self, engine: TrtEngine, context: Any) -> None:
        self._engine = engine  # TensorRT's context does not keep its engine alive
        self._context = context

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set an input's shape, which the profile must take."""
        if not self._context.set_input_shape(name, shape):
            raise SessionError(
                f"TensorRT refuses shape {shape} of {name}: {self._engine.library.reason()}"
            )

    def set_address(self, name: str, address: int) -> None:
        """Tie an input or output to device memory."""
        self._context.set_tensor_address(name, address)

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Shape of an output, once those of every input have been set.

        Raises:
            SessionError: it depends on what is computed.
        """
        shape = tuple(self._context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise SessionError(f"TensorRT cannot tell the shape of {name} before it has run")
        return shape

    def enqueue(self, stream: Stream) -> None:
        """Queue a run on a stream.

        Raises:
            SessionError: TensorRT failed.
        """
        if not self._context.execute_async_v3(stream.handle):
            raise SessionError(f"TensorRT failed while running: {self._engine.library.reason()}")

    def can_be_captured(self, stream: Stream) -> bool:
        """Whether a CUDA graph can hold a run. Only TensorRT-RTX knows; else True, and the caller tries."""
        question = getattr(self._context, "is_stream_capturable", None)
        return True if question is None else bool(question(stream.handle))


class TrtEngine:
    """An engine on a GPU, shared by every session of its file.

    Attributes:
        description: what ``engine.json`` says.
        library: the runtime that runs it.
        gpu: where.
    """

    def __init__(
        self, description: EngineDescription, library: Library, gpu: Gpu, engine: Any
    ) -> None:
        self.description = description
        self.library = library
        self.gpu = gpu
        self._engine = engine

    def execution(self, profile: int, stream: Stream) -> Execution:
        """A new execution context on a profile.

        Raises:
            SessionError: there is not enough memory on the GPU.
        """
        # Memory for the profile alone, not for the largest of them: decoding needs little.
        strategy = self.library.module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(strategy)
        if context is None or not context.set_optimization_profile_async(profile, stream.handle):
            raise SessionError(
                f"GPU {self.gpu.index} ({self.gpu.name}) cannot run the engine "
                f"({self.gpu.free_memory() >> 20} MiB free): {self.library.reason()}"
            )
        stream.synchronize()
        return Execution(self, context)


_open_engines: weakref.WeakValueDictionary[tuple[object, ...], TrtEngine] = (
    weakref.WeakValueDictionary()
)
_opening = threading.Lock()


def open_engine(folder: Path, metadata: Metadata, device: int = 0) -> TrtEngine:
    """The engine of an exported folder on a GPU, checked before it is loaded; loaded once for all sessions.

    Raises:
        SessionError: there is no GPU, it is one that the engine does not run on, or memory cannot be allocated.
        EngineError: there is no engine, or it is damaged, or of another version, runtime or model; TensorRT
            is not installed, or the plugin library is missing or another program's.
    """
    description = read_description(folder)
    path = check_engine_file(folder, description)
    check_model(folder, description, metadata)
    check_host_code(path, description)
    gpu = Gpu(device)
    check_gpu(description, gpu)
    library = libraries.load(description.kind)
    check_version(description, library)
    if description.plugin_library is not None:
        load_plugin(library)
    gpu.activate()
    status = path.stat()
    key = (path.resolve(), status.st_mtime_ns, status.st_size, device)
    with _opening:
        engine = _open_engines.get(key)
        if engine is None:
            loaded = _deserialise(path, library, gpu, description.version_compatible)
            engine = TrtEngine(description, library, gpu, loaded)
            _open_engines[key] = engine
    return engine


def check_gpu(description: EngineDescription, gpu: Gpu) -> None:
    """Check that an engine runs on a GPU.

    Raises:
        SessionError: it does not; names the compute capability found, and those that would do.
    """
    kind = description.kind
    if kind.capabilities is not None:
        supported = kind.capabilities
    elif description.compute_capability is not None:
        supported = (description.compute_capability,)
    elif float(gpu.capability) >= 8.0:
        return
    else:
        supported = ("8.0 and later",)
    if gpu.capability not in supported:
        raise SessionError(
            f"GPU {gpu.index} ({gpu.name}) has compute capability {gpu.capability}, this engine of "
            f"{kind.title} runs on {', '.join(supported)}: build one for this GPU, or use --backend ort"
        )


def check_version(description: EngineDescription, library: Library) -> None:
    """Check that this version of TensorRT runs an engine.

    Raises:
        SessionError: it does not; names both versions.
    """
    built = description.runtime_version
    if built is None or built == library.version:
        return
    if description.version_compatible and _numbers(built) <= _numbers(library.version):
        return
    raise SessionError(
        f"the engine was built by {library.kind.title} {built} and {library.version} is installed: "
        "build it again, or install the version that built it"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _deserialise(path: Path, library: Library, gpu: Gpu, version_compatible: bool) -> Any:
    needed, free = path.stat().st_size, gpu.free_memory()
    if needed > free:
        raise SessionError(
            f"GPU {gpu.index} ({gpu.name}) has {free >> 20} MiB of memory free and {path} needs "
            f"{needed >> 20} MiB and more: end other programs, or export with --dtype fp16"
        )
    library.logger.take_errors()
    runtime = library.module.Runtime(library.logger)
    if version_compatible:  # and check_host_code has found that the user allows it
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(
        read_bytes(path, error=EngineError, limit=_LARGEST_ENGINE)
    )
    if engine is None:
        raise SessionError(f"{path} cannot be loaded by {library}: {library.reason()}")
    return engine
