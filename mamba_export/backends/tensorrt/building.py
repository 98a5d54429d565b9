"""``build``: an exported folder to a TensorRT engine beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from mamba_export.backends.tensorrt import cuda_driver
from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.deploy import deploy_text
from mamba_export.backends.tensorrt.description import EngineDescription, describe, interface
from mamba_export.backends.tensorrt.library import Library
from mamba_export.backends.tensorrt.names import (
    DEPLOY_FILE,
    DESCRIPTION_FILE,
    ENGINE_FILE,
    GRAPH_FILE,
    TENSORRT_RTX,
)
from mamba_export.backends.tensorrt.options import BuildOptions, check_request
from mamba_export.backends.tensorrt.plugin import load_plugin
from mamba_export.backends.tensorrt.profiles import Profile
from mamba_export.backends.tensorrt.progress import Interrupt, Progress, make_monitor
from mamba_export.backends.tensorrt.surgery import prepare
from mamba_export.errors import EngineError
from mamba_export.folder.metadata import Metadata, read_metadata

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
    options = options or BuildOptions()
    folder = Path(folder).expanduser()
    metadata = read_metadata(folder)
    check_request(metadata, options)
    if (folder / ENGINE_FILE).exists() and not force:
        raise EngineError(f"{folder / ENGINE_FILE} exists: --force replaces it")

    library, plugin_library = check_installed(options)

    say: Progress = progress or (lambda *_: None)
    say("reading the graph", 0.0)
    graph, nodes = prepare(metadata.model_path, plugin=options.plugin)
    start = time.perf_counter()
    plan, plugins = compile_graph(
        library,
        graph,
        metadata.model_path,
        interface_shapes(metadata, options.profiles()),
        nodes if options.plugin else Counter(),
        options,
        say,
    )
    say("writing", 0.0)
    tied = library.kind is not TENSORRT_RTX and not options.hardware_compatible
    with _new_files(folder) as files:
        engine_sha256 = _write_engine(files / ENGINE_FILE, plan)
        description = describe(
            metadata,
            runtime=library.kind.name,
            profiles=options.profiles(),
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
        (files / GRAPH_FILE).write_bytes(graph.SerializeToString())
        (files / DEPLOY_FILE).write_text(deploy_text(metadata, options), encoding="utf-8")
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


Shapes = list[dict[str, tuple[tuple[int, ...], ...]]]
"""For each profile: minimum, optimum and maximum shape of each input."""


def interface_shapes(metadata: Metadata, profiles: tuple[Profile, ...]) -> Shapes:
    """Shapes of every input in every profile."""
    inputs, _ = interface(metadata)
    return [{tensor.name: profile.shapes(tensor) for tensor in inputs} for profile in profiles]


def compile_graph(
    library: Library,
    graph: onnx.ModelProto,
    model_path: Path,
    shapes: Shapes,
    expected: Counter[str],
    options: BuildOptions,
    progress: Progress,
) -> tuple[Any, dict[str, int]]:
    """Build an engine in memory.

    Args:
        library: what builds.
        graph: prepared by ``surgery.prepare``.
        model_path: beside it lie the weights.
        shapes: of the inputs, a profile each.
        expected: plugin layers that the engine must have, by operator.
        options: of the build.
        progress: told of it.

    Returns:
        The serialised engine, a buffer, and its plugin layers by operator.

    Raises:
        EngineError: the parser or the builder refused, or a node did not become a plugin.
    """
    trt = library.module
    library.logger.take_errors()
    try:
        builder = trt.Builder(library.logger)
    except TypeError as error:  # what the binding makes of a null pointer
        raise EngineError(f"{library} cannot start: {library.reason()}") from error
    # One dtype a tensor, the file's: without the flag older versions choose precisions themselves.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, library.logger)
    progress("parsing", 0.0)
    if not parser.parse(graph.SerializeToString(), str(model_path)):
        first = parser.get_error(0)
        raise EngineError(
            f"{model_path}: {library} cannot parse it: node {first.node_name() or '?'}: "
            f"{' '.join(first.desc().split())}"
        )
    _check_network(network, shapes[0], model_path)
    plugins = _plugin_layers(trt, network)
    if plugins != expected:
        raise EngineError(
            f"{model_path}: {dict(plugins)} became plugins of {library}, expected {dict(expected)}"
        )
    config = _configure(library, builder, options, plugin=bool(expected))
    for profile_shapes in shapes:
        profile = builder.create_optimization_profile()
        for name, (minimum, optimum, maximum) in profile_shapes.items():
            profile.set_shape(name, minimum, optimum, maximum)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{model_path}: {library} refuses a profile: {library.reason()}")
    cache = _timing_cache(library, config, options.timing_cache)
    interrupt = Interrupt()
    monitor = make_monitor(trt, progress, interrupt)  # must outlive the build
    config.progress_monitor = monitor
    with interrupt.watched():
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{model_path}: {library} cannot build it: {library.reason()}")
    if cache is not None and options.timing_cache is not None:
        with _beside(options.timing_cache) as path:
            path.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return plan, dict(plugins)


def _check_network(network: Any, shapes: dict[str, Any], model_path: Path) -> None:
    """The graph must be the one that the metadata describes, or the profiles are for another."""
    found = {network.get_input(index).name for index in range(network.num_inputs)}
    if found != set(shapes):
        name = sorted(found ^ set(shapes))[0]
        raise EngineError(
            f"{model_path} is not the file that its folder's metadata describes (input {name} differs): "
            "export the model again"
        )


def _plugin_layers(trt: Any, network: Any) -> Counter[str]:
    kinds = [
        getattr(trt.LayerType, name)
        for name in ("PLUGIN", "PLUGIN_V2", "PLUGIN_V3")
        if hasattr(trt.LayerType, name)
    ]
    layers = (network.get_layer(index) for index in range(network.num_layers))
    # The parser names a layer after its node, which surgery named after its operator.
    return Counter(layer.name.partition("_")[0] for layer in layers if layer.type in kinds)


def _configure(library: Library, builder: Any, options: BuildOptions, *, plugin: bool) -> Any:
    trt = library.module
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32, as in the other runtimes
    if options.workspace_mib is not None:
        limit = options.workspace_mib << 20
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if library.kind is TENSORRT_RTX and plugin:
        # Without it the runtime may allocate while it runs, which no CUDA graph can capture. The loops of the
        # function bodies need that.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    return config


def _timing_cache(library: Library, config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror})") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            f"{path} is no timing cache of {library} and this GPU ({library.reason()}): give another file"
        )
    return cache


def _write_engine(path: Path, plan: Any) -> str:
    """Write the engine piece by piece, gigabytes as it may be; returns its sha256."""
    hashed = hashlib.sha256()
    content = memoryview(plan).cast("B")
    with path.open("wb") as file:
        for start in range(0, len(content), _CHUNK):
            piece = content[start : start + _CHUNK]
            hashed.update(piece)
            file.write(piece)
    return hashed.hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file for people and programs."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _new_files(folder: Path) -> Iterator[Path]:
    """A temporary folder inside ``folder`` whose files move there when the block ends well.

    engine.json moves last: whoever finds it finds the engine that it describes, or is told so by its sha256.
    """
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".engine.partial-", dir=folder))
    except OSError as error:
        raise EngineError(f"{folder}: cannot write there ({error.strerror})") from error
    try:
        yield temporary
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == DESCRIPTION_FILE):
            path.replace(folder / path.name)
    except OSError as error:
        raise EngineError(f"{folder}: cannot write the engine ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary path that replaces ``path`` when the block ends well."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise EngineError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)
