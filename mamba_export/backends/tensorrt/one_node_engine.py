"""A serialised one-node graph as an engine in memory, for ``verify``: built, run, thrown away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference

from mamba_export.backends.tensorrt.compiling import Shapes, compile_graph
from mamba_export.backends.tensorrt.cuda_driver import Gpu
from mamba_export.backends.tensorrt.library import Library
from mamba_export.backends.tensorrt.options import BuildOptions
from mamba_export.backends.tensorrt.plugin import load_plugin
from mamba_export.backends.tensorrt.state import GpuTensor
from mamba_export.backends.tensorrt.surgery import prepare_graph
from mamba_export.errors import SessionError
from mamba_export.folder.dtypes import NUMPY_DTYPES

Inputs = dict[str, np.ndarray]


def open_graph(
    library: Library, model: bytes, *, plugin: bool
) -> Callable[[Inputs], list[np.ndarray]]:
    """A function from the fp32 inputs of a one-node graph to its outputs.

    TensorRT wants to know sizes when it builds, so each call builds an engine of its inputs' shapes.

    Args:
        library: loaded runtime.
        model: serialised graph of one node of our domain, with its function.
        plugin: run our plugin, or the function body.

    Raises:
        MambaExportError: the plugin is missing, or TensorRT refuses the graph.
    """
    if plugin:
        load_plugin(library)
    graph = onnx.ModelProto.FromString(model)
    outputs = [value.name for value in graph.graph.output]

    def run(inputs: Inputs) -> list[np.ndarray]:
        plan = build_graph(library, graph, inputs, plugin=plugin)
        return _execute(library, plan, inputs, outputs)

    return run


def build_graph(library: Library, graph: onnx.ModelProto, inputs: Inputs, *, plugin: bool) -> Any:
    """The serialised engine of a graph of one node of our domain, for these inputs' shapes."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(graph)
    profile: dict[str, tuple[tuple[int, ...], ...]] = {}
    for value in fixed.graph.input:
        shape = inputs[value.name].shape
        # Batch and length stay dynamic, as in a model, in the profile too: TensorRT-RTX 1.7 fails to optimise a
        # loop of known length over 16-bit tensors.
        names = ("batch",) if value.name.endswith("state") else ("batch", "length")
        dynamic = names if len(shape) >= 3 else ()  # the others are parameters
        profile[value.name] = ((1,) * len(dynamic) + shape[len(dynamic) :], shape, shape)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.Clear()
            if axis < len(dynamic):
                dim.dim_param = dynamic[axis]
            else:
                dim.dim_value = shape[axis]
    prepared, count = prepare_graph(onnx.shape_inference.infer_shapes(fixed), plugin=plugin)
    shapes: Shapes = [profile]
    expected = count if plugin else Counter[str]()
    options = BuildOptions(plugin=plugin)
    plan, _ = compile_graph(
        library, prepared, Path("one_node.onnx"), shapes, expected, options, lambda *_: None
    )
    return plan


def _execute(library: Library, plan: Any, inputs: Inputs, outputs: list[str]) -> list[np.ndarray]:
    gpu = Gpu()
    gpu.activate()
    stream = gpu.stream()
    runtime = library.module.Runtime(library.logger)
    engine = runtime.deserialize_cuda_engine(memoryview(plan))
    context = None if engine is None else engine.create_execution_context()
    if context is None:
        raise SessionError(f"{library} cannot load the engine: {library.reason()}")
    tensors = {}
    for name, array in inputs.items():
        context.set_input_shape(name, array.shape)
        tensors[name] = GpuTensor.from_numpy(array.astype(NUMPY_DTYPES["fp32"]), gpu, stream)
    for name in outputs:
        shape = tuple(context.get_tensor_shape(name))
        tensors[name] = GpuTensor("fp32", shape, gpu, stream)
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.address)
    if not context.execute_async_v3(stream.handle):
        raise SessionError(f"{library} failed while running: {library.reason()}")
    return [tensors[name].numpy() for name in outputs]
