"""A graph to a serialised engine in memory: parse, check what became a plugin, set profiles, build."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from mamba_export import given
from mamba_export.backends.tensorrt.library import Library
from mamba_export.backends.tensorrt.names import TENSORRT_RTX
from mamba_export.backends.tensorrt.options import BuildOptions
from mamba_export.backends.tensorrt.progress import Progress, make_monitor
from mamba_export.errors import EngineError
from mamba_export.files import new_file, write_bytes
from mamba_export.interrupts import deferred
from mamba_export.untrusted import read_bytes

Shapes = list[dict[str, tuple[tuple[int, ...], ...]]]
"""For each profile: minimum, optimum and maximum shape of each input."""


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
        progress: called with each phase and how much of it is done.

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
    timing_cache = (
        None if options.timing_cache is None else given.path(options.timing_cache, "--timing-cache")
    )
    cache = _timing_cache(library, config, timing_cache)
    with deferred() as interrupt:
        monitor = make_monitor(trt, progress, interrupt)  # must outlive the build
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{model_path}: {library} cannot build it: {library.reason()}")
    if cache is not None and timing_cache is not None:
        with new_file(timing_cache, error=EngineError) as path:
            write_bytes(path, memoryview(config.get_timing_cache().serialize()))
    return plan, dict(plugins)


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
    content = read_bytes(path, error=EngineError) if os.path.lexists(path) else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            f"{path} is not a timing cache of {library} and this GPU ({library.reason()}): give another file"
        )
    return cache
