"""DEPLOY.md: how to build the same engine on the target itself, with NVIDIA's own tools and no Python."""

from __future__ import annotations

import shlex

from mamba_export.backends.tensorrt.names import ENGINE_FILE, GRAPH_FILE
from mamba_export.backends.tensorrt.options import BuildOptions
from mamba_export.errors import EngineError
from mamba_export.folder.metadata import Metadata
from mamba_export.libraries import TRT_PLUGIN

PLUGIN_SOURCE = "plugin"
"""Folder of a bundle that holds the plugin's sources."""


_PLUGIN_TEXT = f"""
## The plugin

`{TRT_PLUGIN.file}` holds the scan as a TensorRT layer. Build it on the target, for its GPU (87: Jetson Orin,
110: Jetson Thor, 86 and 89: RTX 30 and 40, 120: RTX 50). TensorRT's headers come with JetPack and with
TensorRT's packages:

```
cmake -S {PLUGIN_SOURCE} -B {PLUGIN_SOURCE}/build -DMAMBA_CUDA_ARCHITECTURES=87
cmake --build {PLUGIN_SOURCE}/build --target mamba_export_trt mamba_run -j
cp {PLUGIN_SOURCE}/build/plugins/tensorrt/{TRT_PLUGIN.file} {PLUGIN_SOURCE}/build/plugins/tensorrt/mamba_run .
```

`{PLUGIN_SOURCE}` is what `mamba-export build OUT --bundle FOLDER` puts into FOLDER; elsewhere take
mamba_export's sources.
"""


def trtexec_line(metadata: Metadata, options: BuildOptions) -> str:
    """The ``trtexec`` command that builds the engine of these options, run in the model's folder.

    TensorRT 10 and later. Profiles are in trtexec's order: index, then shapes. One line for a shell, in which
    names of the model's file stand for themselves, whatever they hold.

    Raises:
        EngineError: trtexec cannot be told this name of an input, or of the timing cache.
    """
    if problem := why_no_line(metadata, options):
        raise EngineError(problem)
    words = [
        "trtexec",
        f"--onnx={GRAPH_FILE}",
        f"--saveEngine={ENGINE_FILE}",
        "--stronglyTyped",
        "--noTF32",
        "--skipInference",
    ]
    if options.plugin:
        words.append(f"--staticPlugins=./{TRT_PLUGIN.file}")
    if options.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mib}M")
    if options.timing_cache is not None:
        words.append(f"--timingCacheFile={options.timing_cache.name}")
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.hardware_compatible:
        words.append("--hardwareCompatibilityLevel=ampere+")
    for index, profile in enumerate(options.profiles(metadata)):
        words.append(f"--profile={index}")
        shapes = {tensor.name: profile.shapes(tensor) for tensor in metadata.graph_inputs}
        for position, option in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
            spec = ",".join(
                f"{name}:{'x'.join(map(str, three[position]))}" for name, three in shapes.items()
            )
            words.append(f"{option}={spec}")
    return shlex.join(words)


_TRTEXEC_READS = ",:'"
"""Characters that have a meaning of their own to trtexec inside --minShapes=name:1x2,other:3x4."""


def why_no_line(metadata: Metadata, options: BuildOptions) -> str:
    """Why there is no ``trtexec`` command for a model; empty where there is one.

    Characters that do not print would break out of the line, and out of the code block that shows it.
    """
    for name in (tensor.name for tensor in metadata.graph_inputs):
        if not name or not name.isprintable() or any(mark in name for mark in _TRTEXEC_READS):
            return (
                f"trtexec cannot be told the shapes of input {name!a}: export the model with names "
                "without commas, colons, quotes and characters that do not print"
            )
    cache = options.timing_cache
    if cache is not None and not cache.name.isprintable():
        return f"--timing-cache {cache.name!a}: give a file whose name prints"
    return ""


def deploy_text(metadata: Metadata, options: BuildOptions) -> str:
    """DEPLOY.md of an exported folder, or of a bundle of it."""
    prefill, decode = options.profiles(metadata)
    problem = why_no_line(metadata, options)
    line = f"```\n{trtexec_line(metadata, options)}\n```" if not problem else f"None: {problem}."
    with_plugin = "With" if options.plugin else "Without"
    return f"""# An engine of this model, built on the target

This folder holds a {metadata.dtype} Mamba model. A TensorRT engine runs on the GPU and the TensorRT version
that built it, so it is built where it is to run. Needed there: TensorRT 10.3 or newer with `trtexec`
(JetPack 6.1 and later have both, in /usr/src/tensorrt/bin), `{GRAPH_FILE}` and `model.onnx.data`; no Python.
{_PLUGIN_TEXT if options.plugin else ""}
## The engine

{with_plugin} our plugin. Profile 0, {prefill.name}: batch {prefill.batch[0]} to {prefill.batch[2]},
{prefill.length[0]} to {prefill.length[2]} steps of the prompt a run. Profile 1, {decode.name}: one step.

{line}

Then run it (--tokens 1,2,3 for a model that is not of bytes):

```
./mamba_run --engine .{f" --plugin ./{TRT_PLUGIN.file}" if options.plugin else ""} --prompt TEXT
```

mamba_run opens the plugin library that --plugin names, else the one beside itself; what a folder says of
libraries chooses none. An engine file is code: run one that you built, or whose maker you trust.

From TensorRT 11 on every network is strongly typed, and the option --stronglyTyped changes nothing.

With Python and mamba_export on the target, `mamba-export build FOLDER` does all of this. It is the way for
TensorRT-RTX too, which needs no GPU to build.
"""
