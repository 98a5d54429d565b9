"""Builds an engine of an ONNX file in TensorRT-RTX with the plugin library, and prints in JSON what came of it.

One argument, in JSON: ``library``, ``model`` and ``ranges``, the smallest and the largest shape of each input.
"""

import json
import sys

import tensorrt_rtx as trt


class Log(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, text: str) -> None:
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(text)


request, log = json.loads(sys.argv[1]), Log()
builder = trt.Builder(log)
registry = builder.get_plugin_registry()
registry.load_library(request["library"])
answer = {
    "creators": [
        (creator.name, creator.plugin_version)
        for creator in registry.all_creators
        if creator.plugin_namespace == "mamba_export"
    ],
    "bytes": 0,
}
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
answer["parsed"] = parser.parse_from_file(request["model"])
if answer["parsed"]:
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    answer["plugins"] = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    answer["outputs"] = [[str(output.dtype), list(output.shape)] for output in outputs]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for i, (low, high) in enumerate(request["ranges"]):
        profile.set_shape(network.get_input(i).name, low, high, high)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine:
        answer |= {"bytes": engine.nbytes, "has_fields": b"contract_version" in bytes(engine)}
print(json.dumps({**answer, "errors": log.errors}))
