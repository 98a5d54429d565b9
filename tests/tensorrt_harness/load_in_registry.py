"""Loads the plugin library into the registry of NVIDIA's lean runtime, and prints in JSON what came of it.

Standard input, in JSON: ``folder``, where the wheels are; ``with_runtime``, whether to create a Runtime
(it needs a GPU); and for each operator its ``fields``, ``bad_fields``, ``inputs``, and ``queries`` of formats.

The Python bindings give a plugin's names and texts. They do not give its clone, its serialised fields, its
formats and shapes: those are asked of the same C++ object by the harness, which takes its address from the
Python object.
"""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from tensorrt_harness import driver
from tensorrt_harness.driver import Field, Harness, Plugin, Tensor

from mamba_export import contract
from mamba_export.backends.tensorrt import library, plugin
from mamba_export.backends.tensorrt.names import Kind
from mamba_export.libraries import TRT_PLUGIN

LEAN = Kind(
    name="tensorrt_lean",
    option="tensorrt-lean",
    module="tensorrt_lean_bindings",
    title="TensorRT lean",
    tag=b"",
    install="make test",
    capabilities=None,
)


_NUMPY = {driver.FIELD_INT32: np.int32, driver.FIELD_FLOAT32: np.float32}


def collection(trt: Any, fields: list[list[Any]]) -> Any:
    return trt.PluginFieldCollection(
        [
            trt.PluginField(name, np.array([value], _NUMPY[kind]), trt.PluginFieldType(kind))
            for name, value, kind in fields
        ]
    )


def address(instance: Any) -> int:
    """Of the C++ object behind a Python one: pybind11 keeps it behind the object's header."""
    place = id(instance) + object.__basicsize__
    found = ctypes.c_void_p.from_address(place).value
    assert found
    return found


def tensors(values: list[list[Any]]) -> list[Tensor]:
    return [Tensor(tuple(shape), *others) for shape, *others in values]


def seen(trt: Any, harness: Harness, op: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What the registry's creator of an operator says and makes."""
    creator = trt.get_plugin_registry().get_creator(
        op, contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE
    )
    made = creator.create_plugin(
        "a layer", collection(trt, asked["fields"]), trt.TensorRTPhase.BUILD
    )
    core, build, runtime = (
        made.get_capability_interface(kind)
        for kind in (
            trt.PluginCapabilityType.CORE,
            trt.PluginCapabilityType.BUILD,
            trt.PluginCapabilityType.RUNTIME,
        )
    )
    clone = Plugin(harness, harness.c.harness_clone(ctypes.c_void_p(address(made))))
    inputs = tensors(asked["inputs"])
    written = clone.fields()
    again = creator.create_plugin(
        "reloaded",
        collection(trt, plain_fields(written)),
        trt.TensorRTPhase.RUNTIME,
    )
    bad = creator.create_plugin(
        "layers.3", collection(trt, asked["bad_fields"]), trt.TensorRTPhase.BUILD
    )
    return {
        "creator": type(creator).__name__,
        "interface": creator.interface_info.kind,
        "attributes": [field.name for field in creator.field_names],
        "names": [core.plugin_name, core.plugin_version, core.plugin_namespace],
        "kinds": [part.interface_info.kind for part in (core, build, runtime)],
        "outputs": build.num_outputs,
        "metadata": build.metadata_string,
        "clone": clone.text(4),
        "written": plain_fields(written),
        "reloaded": again.get_capability_interface(trt.PluginCapabilityType.BUILD).metadata_string,
        "formats": [
            clone.supports(position, tensors(values), len(inputs))
            for position, values in asked["queries"]
        ],
        "types": clone.output_types(inputs),
        "shapes": clone.output_shapes(inputs),
        "refused": bad is None,
    }


def main() -> None:
    request = json.load(sys.stdin)
    sys.path.insert(0, request["folder"])
    path, harness_path = TRT_PLUGIN.path(), driver.harness_path()
    assert path
    assert harness_path
    harness = Harness(harness_path, path, 0)  # first: the registry then gives its own logger
    found = library.load(LEAN)
    runtime = found.module.Runtime(found.logger) if request["with_runtime"] else None
    plugin.load_plugin(found)
    answer: dict[str, Any] = {"version": found.module.__version__, "runtime": runtime is not None}
    answer["operators"] = {
        op: seen(found.module, harness, op, asked) for op, asked in request["operators"].items()
    }
    print(json.dumps({**answer, "logged": found.logger.take_errors()}))


def request_of(folder: str, with_runtime: bool, operators: dict[str, Any]) -> str:
    """What a run reads from its standard input."""
    return json.dumps({"folder": folder, "with_runtime": with_runtime, "operators": operators})


def plain_fields(values: list[Field]) -> list[list[Any]]:
    """Names, values and types of fields, for a request."""
    return [[field.name, field.value, field.type] for field in values]


def plain_tensors(values: list[Tensor]) -> list[list[Any]]:
    """Tensors, for a request."""
    return [list(asdict(tensor).values()) for tensor in values]


if __name__ == "__main__":
    main()
