"""``build``: an exported folder to a TensorRT engine beside it."""

from __future__ import annotations

import hashlib
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mamba_export import given
from mamba_export.backends.tensorrt import cuda_driver
from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.compiling import Shapes, compile_graph
from mamba_export.backends.tensorrt.deploy import deploy_text
from mamba_export.backends.tensorrt.description import EngineDescription, describe
from mamba_export.backends.tensorrt.library import Library
from mamba_export.backends.tensorrt.names import (
    DEPLOY_FILE,
    DESCRIPTION_FILE,
    ENGINE_FILE,
    GRAPH_FILE,
    TENSORRT_RTX,
)
from mamba_export.backends.tensorrt.options import BuildOptions, as_options, check_request
from mamba_export.backends.tensorrt.plugin import load_plugin
from mamba_export.backends.tensorrt.profiles import Profile
from mamba_export.backends.tensorrt.progress import Progress
from mamba_export.backends.tensorrt.surgery import described_graph
from mamba_export.errors import EngineError
from mamba_export.files import new_files, opened, write_bytes, write_text
from mamba_export.folder.metadata import Metadata, read_metadata, write_json

_CHUNK = 1 << 24
_ONLY_TENSORRT = {
    "timing_cache": "--timing-cache",
    "version_compatible": "--version-compatible",
    "hardware_compatible": "--hardware-compatible",
}
"""Options that TensorRT-RTX has no use for: its engines are portable, its kernels are chosen on the target."""


def build(
    folder: str | Path,
    options: BuildOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> EngineDescription:
    """Build an engine: writes model.engine, engine.json, model.tensorrt.onnx and DEPLOY.md into the folder.

    Args:
        folder: what ``export`` wrote.
        options: None for the defaults.
        force: replace an engine that is there.
        progress: called with what is done, and how much of it, from 0 to 1.

    Returns:
        What ``engine.json`` holds.

    Raises:
        MambaExportError: bad input or a missing requirement, one clear line; nothing is written. Among
            others: a scan did not become a plugin.
    """
    options = as_options(options)
    force = given.flag(force, "force", EngineError)
    given.function(progress, "progress", EngineError)
    metadata = read_metadata(folder)
    folder = metadata.folder
    check_request(metadata, options)

    def check_new() -> None:
        if (folder / ENGINE_FILE).exists() and not force:
            raise EngineError(f"{folder / ENGINE_FILE} exists: --force replaces it")

    check_new()
    library, plugin_library = check_installed(options)

    say: Progress = progress or (lambda *_: None)
    say("reading the graph", 0.0)
    graph, nodes = described_graph(metadata, plugin=options.plugin)
    start = time.perf_counter()
    plan, plugins = compile_graph(
        library,
        graph,
        metadata.model_path,
        interface_shapes(metadata, options.profiles(metadata)),
        nodes if options.plugin else Counter(),
        options,
        say,
    )
    say("writing", 0.0)
    tied = library.kind is not TENSORRT_RTX and not options.hardware_compatible
    with new_files(folder, last=DESCRIPTION_FILE, check=check_new, error=EngineError) as files:
        engine_sha256 = _write_engine(files / ENGINE_FILE, plan)
        description = describe(
            metadata,
            runtime=library.kind.name,
            profiles=options.profiles(metadata),
            plugins=plugins,
            plugin_library=plugin_library,
            runtime_version=library.version,
            compute_capability=cuda_driver.Gpu().capability if tied else None,
            engine_sha256=engine_sha256,
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
            build={
                "seconds": round(time.perf_counter() - start, 2),
                # Of the process so far: building dwarfs what came before it in the command.
                "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
                "engine_bytes": (files / ENGINE_FILE).stat().st_size,
            },
        )
        write_bytes(files / GRAPH_FILE, graph.SerializeToString())
        write_text(files / DEPLOY_FILE, deploy_text(metadata, options))
        write_json(files / DESCRIPTION_FILE, description.to_json())
    return description


def check_installed(options: BuildOptions) -> tuple[Library, str | None]:
    """Load what a build needs: the runtime, and the plugin where it is wanted.

    Returns:
        The runtime, and the file name of the plugin library or None.

    Raises:
        EngineError: something is missing, or an option is none of this runtime's.
    """
    gpu_present = cuda_driver.has_gpu()
    kind = libraries.choose(options.runtime, gpu_present)
    if kind is TENSORRT_RTX:
        for name, option in _ONLY_TENSORRT.items():
            if getattr(options, name):
                raise EngineError(
                    f"{option} is for TensorRT: TensorRT-RTX's engines are portable as they are and its "
                    "kernels are chosen on the target; leave it out, or --runtime tensorrt"
                )
    library = libraries.load(kind)
    if kind is not TENSORRT_RTX and not gpu_present:
        raise EngineError(
            f"{library} builds on a GPU and there is none here: --runtime tensorrt-rtx needs none, "
            "--bundle FOLDER builds on the target"
        )
    return library, load_plugin(library).name if options.plugin else None


def interface_shapes(metadata: Metadata, profiles: tuple[Profile, ...]) -> Shapes:
    """Shapes of every input in every profile."""
    inputs = metadata.graph_inputs
    return [{tensor.name: profile.shapes(tensor) for tensor in inputs} for profile in profiles]


def _write_engine(path: Path, plan: Any) -> str:
    """Write the engine piece by piece, gigabytes as it may be; returns its sha256."""
    hashed = hashlib.sha256()
    content = memoryview(plan).cast("B")
    with opened(path) as file:
        for start in range(0, len(content), _CHUNK):
            piece = content[start : start + _CHUNK]
            hashed.update(piece)
            file.write(piece)
    return hashed.hexdigest()
