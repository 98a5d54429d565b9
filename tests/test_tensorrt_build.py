"""Engines on a machine without a GPU: TensorRT-RTX parses and builds the shipped model in every dtype.

Through our plugin and through the function bodies; what the builder takes and refuses; bad input.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from mamba_export.backends.onnxruntime.session import OrtSession
from mamba_export.backends.tensorrt import BuildOptions, EngineDescription, build, read_description
from mamba_export.backends.tensorrt import library as libraries
from mamba_export.backends.tensorrt.engine_checks import check_engine_file, check_model
from mamba_export.backends.tensorrt.fingerprint import sha256
from mamba_export.backends.tensorrt.names import TENSORRT_RTX
from mamba_export.backends.tensorrt.surgery import prepare
from mamba_export.errors import MambaExportError
from mamba_export.export import export
from mamba_export.fields import Fields
from mamba_export.folder.metadata import read_metadata
from mamba_export.libraries import TRT_PLUGIN
from mamba_export.models import MambaBackbone, MambaConfig, MambaLM

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "models" / "kjv-bytes"

needs_rtx = pytest.mark.skipif(
    not libraries.is_installed(TENSORRT_RTX), reason="tensorrt-rtx is not installed"
)
needs_surgeon = pytest.mark.skipif(
    importlib.util.find_spec("onnx_graphsurgeon") is None,
    reason="onnx-graphsurgeon is not installed",
)
needs_plugin = pytest.mark.skipif(
    TRT_PLUGIN.path() is None,
    reason="the TensorRT plugin was not built (no CUDA toolkit or headers)",
)


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mamba_export", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


@pytest.fixture(scope="module")
def exported(tiny_model: MambaLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model, tmp_path_factory.mktemp("trt") / "tiny")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder that a test may write to."""
    return Path(shutil.copytree(exported, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def built(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "tiny"
    shutil.copytree(exported, folder)
    build(folder, BuildOptions(plugin=False, runtime="tensorrt-rtx"))
    return folder


@needs_rtx
@pytest.mark.parametrize(
    "plugin",
    [pytest.param(True, marks=needs_plugin, id="plugin"), pytest.param(False, id="bodies")],
)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_engine_of_the_shipped_model(dtype: str, plugin: bool, tmp_path: Path) -> None:
    folder = export(SHIPPED, tmp_path / dtype, dtype=dtype)
    seen: list[tuple[str, float]] = []
    options = BuildOptions(plugin=plugin, runtime="tensorrt-rtx", batch=(1, 2, 8))
    description = build(folder, options, progress=lambda *step: seen.append(step))

    assert read_description(folder) == description
    assert description.plugins == ({"CausalConv1d": 8, "SelectiveScan": 8} if plugin else {}), (
        "every scan and convolution of the eight layers"
    )
    assert description.plugin_library == (TRT_PLUGIN.path().name if plugin else None)
    assert description.precision == dtype
    assert description.byte_tokenizer
    assert description.vocab_size == 256
    assert description.compute_capability is None, "TensorRT-RTX's engines are portable"
    dtypes = {tensor["name"]: tensor["dtype"] for tensor in description.inputs}
    assert dtypes["input_ids"] == "int64"
    assert dtypes["past_key_values.0.conv_state"] == dtype
    assert dtypes["past_key_values.7.recurrent_state"] == "fp32"
    assert len(description.inputs) == len(description.outputs) == 17
    prefill, decode = description.profiles
    assert (prefill.batch, prefill.length) == ((1, 2, 8), (1, 128, 4096))
    assert (decode.batch, decode.length) == ((1, 2, 8), (1, 1, 1))

    metadata = read_metadata(folder)
    engine = check_engine_file(folder, description)
    check_model(folder, description, metadata)
    content = engine.read_bytes()
    assert len(content) == description.build["engine_bytes"]
    # The engine cannot be loaded without a GPU, but it names its tensors and its plugin layers.
    for tensor in (*description.inputs, *description.outputs):
        assert tensor["name"].encode() in content
    for index in range(8):
        for operator in ("SelectiveScan", "CausalConv1d"):
            assert (f"[ONNX Layer: {operator}_{index}]".encode() in content) == plugin
    assert {0.0, 1.0} <= {share for _, share in seen}, "progress was reported"
    assert not list(folder.glob(".*")), "no temporary file is left"
    assert "trtexec --onnx=model.tensorrt.onnx" in (folder / "DEPLOY.md").read_text()


@needs_rtx
def test_the_network_has_the_engines_interface(exported: Path) -> None:
    """What the builder is given, since an engine cannot be opened without a GPU: names, dtypes and ranks."""
    library = libraries.load(TENSORRT_RTX)
    trt = library.module
    graph, _ = prepare(exported / "model.onnx", plugin=False)
    network = trt.Builder(library.logger).create_network(1)
    parser = trt.OnnxParser(network, library.logger)
    assert parser.parse(graph.SerializeToString(), str(exported / "model.onnx"))
    names = {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16", trt.int64: "int64"}
    metadata = read_metadata(exported)
    expected = metadata.graph_inputs
    for index, tensor in enumerate(expected):
        found = network.get_input(index)
        dims = [-1 if isinstance(size, str) else size for size in tensor.shape]
        assert (found.name, names[found.dtype], list(found.shape)) == (
            tensor.name,
            tensor.dtype,
            dims,
        )
    expected = metadata.graph_outputs
    found_outputs = [network.get_output(index) for index in range(network.num_outputs)]
    assert [(t.name, names[t.dtype], len(t.shape)) for t in found_outputs] == [
        (t.name, t.dtype, len(t.shape)) for t in expected
    ]


@needs_surgeon
@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("d_conv", [2, 4])
def test_surgery_without_plugins_keeps_the_values(opset: int, d_conv: int, tmp_path: Path) -> None:
    """Plain operators compute what the functions did, bit for bit, at any batch and length."""
    config = MambaConfig(d_model=24, n_layer=2, vocab_size=64, d_conv=d_conv)
    folder = export(MambaLM(config).eval(), tmp_path / "out", opset=opset)
    graph, count = prepare(folder / "model.onnx", plugin=False)
    assert count == {"SelectiveScan": 2, "CausalConv1d": 2}
    assert not graph.functions
    assert {node.domain for node in graph.graph.node} == {""}
    onnx.save(graph, str(folder / "plain.onnx"))
    plain = ort.InferenceSession(str(folder / "plain.onnx"))
    session = OrtSession(folder, providers=["CPUExecutionProvider"], native=False)
    random = np.random.default_rng(0)
    for batch, length in ((1, 1), (2, 3), (3, 33)):
        ids = random.integers(0, 64, (batch, length))
        past = [
            random.standard_normal(info.past.resolve({"batch": batch})).astype(np.float32)
            for info in session.metadata.states
        ]
        logits, state = session.run(ids, session.state_from_numpy(past))
        names = [info.past.name for info in session.metadata.states]
        found = plain.run(None, {"input_ids": ids, **dict(zip(names, past, strict=True))})
        for one, other in zip(found, [logits, *state.numpy()], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@needs_surgeon
@pytest.mark.parametrize("silu", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_surgery_spells_out_every_convolution(silu: int, reverse: int, length: int) -> None:
    from mamba_export.backends.tensorrt.surgery import prepare_graph
    from mamba_export.export.functions import function_protos
    from mamba_export.verify.cases import Case
    from mamba_export.verify.operators import one_node_model

    case = Case.of("CausalConv1d", length=length, reverse=bool(reverse), silu=bool(silu))
    graph = onnx.ModelProto.FromString(one_node_model(case, "fp32", function_protos(20), 20))
    random = np.random.default_rng(length)
    inputs = {
        "x": random.standard_normal((2, length, 5)),
        "weight": random.standard_normal((5, 4)),
        "bias": random.standard_normal(5),
        "initial_state": random.standard_normal((2, 5, 3)),
    }
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    expected = ort.InferenceSession(graph.SerializeToString()).run(None, inputs)
    for value in graph.graph.input:
        for dim, size in zip(
            value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=True
        ):
            dim.Clear()
            dim.dim_value = size
    plain, _ = prepare_graph(onnx.shape_inference.infer_shapes(graph), plugin=False)
    assert not plain.functions
    found = ort.InferenceSession(plain.SerializeToString()).run(None, inputs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_surgery_for_plugins_leaves_no_function_and_reads_no_weight(exported: Path) -> None:
    graph, count = prepare(exported / "model.onnx", plugin=True)
    assert count == {"SelectiveScan": 2, "CausalConv1d": 2}
    assert not graph.functions, "a parser that prefers functions would not take the plugin"
    ours = [node for node in graph.graph.node if node.domain == "mamba_export"]
    assert {node.op_type for node in ours} == {"SelectiveScan", "CausalConv1d"}
    assert all(
        {"plugin_version", "plugin_namespace"} <= {a.name for a in node.attribute} for node in ours
    )
    large = [tensor for tensor in graph.graph.initializer if tensor.external_data]
    assert large
    assert graph.ByteSize() < 100_000


@needs_rtx
def test_a_model_without_tokens_builds(tmp_path: Path) -> None:
    folder = export(MambaBackbone(MambaConfig(d_model=16, n_layer=1)).eval(), tmp_path / "out")
    options = BuildOptions(plugin=False, runtime="tensorrt-rtx", length=(1, 8, 16))
    description = build(folder, options)
    assert description.inputs[0] == {
        "name": "inputs_embeds",
        "dtype": "fp32",
        "shape": [-1, -1, 16],
    }
    assert description.vocab_size == 0
    assert not description.byte_tokenizer


@needs_rtx
def test_command_builds_and_tells(folder: Path) -> None:
    arguments = ["build", folder, "--no-plugin", "--runtime", "tensorrt-rtx", "--batch", "1"]
    result = command(*arguments, "--length", "1,8,64", "--workspace", "64M")
    assert result.returncode == 0, result.stderr
    assert "plugin layers: none" in result.stdout
    assert "length 1 to 64" in result.stdout
    assert result.stdout.splitlines()[-1].endswith(f"{folder / 'DEPLOY.md'} has the trtexec line")
    text = (folder / "DEPLOY.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("trtexec "))
    assert line.startswith("trtexec --onnx=model.tensorrt.onnx --saveEngine=model.engine")
    assert "--memPoolSize=workspace:64M" in line
    assert "--profile=0 --minShapes=input_ids:1x1," in line
    assert "--profile=1 --minShapes=input_ids:1x1," in line
    before = sha256(folder / "model.engine")
    again = command(*arguments)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert sha256(folder / "model.engine") == before


@needs_rtx
@needs_plugin
@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt_rtx_libs"])
def test_a_parser_that_was_imported_first_ends_in_an_error_not_in_the_process(
    module: str, folder: Path
) -> None:
    """TensorRT-RTX's parser aborts where it does not find libtensorrt_rtx.so."""
    program = (
        f"import {module}\n"
        "from mamba_export.backends.tensorrt import build, BuildOptions\n"
        f"build({str(folder)!r}, BuildOptions(runtime='tensorrt-rtx'))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode in (0, 1), "built (the name was there), or raised"
    if result.returncode:
        assert "EngineError: tensorrt_rtx was imported before" in result.stderr.splitlines()[-1]


@needs_rtx
def test_a_scan_that_is_no_plugin_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_export.backends.tensorrt import building

    bodies = prepare(folder / "model.onnx", plugin=False)
    monkeypatch.setattr(building, "described_graph", lambda *_, **__: bodies)
    monkeypatch.setattr(building, "load_plugin", lambda _: Path("libmamba_export_trt.so"))
    with pytest.raises(MambaExportError, match="became plugins"):
        build(folder, BuildOptions(runtime="tensorrt-rtx"))
    assert not (folder / "model.engine").exists()


@needs_rtx
def test_a_build_that_cannot_be_written_leaves_the_old_engine(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    options = BuildOptions(plugin=False, runtime="tensorrt-rtx", batch=(1, 1, 1), length=(1, 8, 16))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            MambaExportError, match=r"model\.engine: it would be larger than a file"
        ):
            build(folder, options, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _change(folder: Path, **fields: object) -> None:
    path = folder / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _truncate(folder: Path) -> None:
    content = (folder / "model.engine").read_bytes()
    (folder / "model.engine").write_bytes(content[:-1000])


def _other_model(folder: Path) -> None:
    content = bytearray((folder / "model.onnx.data").read_bytes())
    content[:4] = b"\0\1\2\3"
    (folder / "model.onnx.data").write_bytes(content)


BAD_ENGINES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no engine": (lambda f: (f / "engine.json").unlink(), "mamba-export build"),
    "no engine file": (lambda f: (f / "model.engine").unlink(), "model.engine"),
    "truncated": (_truncate, "truncated"),
    "cut to nothing": (lambda f: (f / "model.engine").write_bytes(b""), "not an engine"),
    "no engine at all": (lambda f: (f / "model.engine").write_bytes(b"x" * 99), "not an engine"),
    "another runtime": (lambda f: _change(f, runtime="tensorrt"), "TensorRT-RTX"),
    "another version": (lambda f: _change(f, runtime_version="1.2.3"), "1.2.3"),
    "another model": (_other_model, "another model"),
    "another precision": (lambda f: _change(f, precision="fp16"), "another model"),
    "another contract": (lambda f: _change(f, contract_version=9), "contract_version 9"),
    "another layout": (lambda f: _change(f, format=9), "format 9"),
    "damaged description": (
        lambda f: (f / "engine.json").write_text("{"),
        "engine.json is not valid JSON",
    ),
    "a field missing": (lambda f: _change(f, profiles=None), "damaged"),
}


@needs_rtx
@pytest.mark.parametrize("case", BAD_ENGINES)
def test_a_bad_engine_is_told_before_a_gpu_is_looked_for(
    case: str, built: Path, tmp_path: Path
) -> None:
    from mamba_export.backends.tensorrt.session import TrtSession

    folder = Path(shutil.copytree(built, tmp_path / "out"))
    spoil, word = BAD_ENGINES[case]
    spoil(folder)
    with pytest.raises(MambaExportError, match=word) as caught:
        TrtSession(folder)
    assert "\n" not in str(caught.value)


BAD_REQUESTS: dict[str, tuple[list[str], str]] = {
    "no such folder": (["build", "{t}/none"], "none"),
    "another precision": (["build", "{f}", "--precision", "bf16"], "--dtype bf16"),
    "falling batch": (["build", "{f}", "--batch", "4,1,9"], "--batch 4,1,9"),
    "length of words": (["build", "{f}", "--length", "long"], "--length long"),
    "length 0": (["build", "{f}", "--length", "0"], "--length 0"),
    "workspace": (["build", "{f}", "--workspace", "lots"], "--workspace lots"),
    "unknown runtime": (["build", "{f}", "--runtime", "rt"], "tensorrt-rtx"),
    "plugin switched off": (["build", "{f}"], "MAMBA_EXPORT_TRT_PLUGIN=none"),
    "provider with trt": (
        ["run", "{f}", "--prompt", "a", "--backend", "trt", "--provider", "cpu"], "--provider"),
    "run without an engine": (["run", "{f}", "--prompt", "a", "--backend", "trt"], "mamba-export build"),
    "verify without an engine": (["verify", "{f}", "--backend", "trt"], "mamba-export build"),
    "bundle exists": (["build", "{f}", "--no-plugin", "--bundle", "{t}"], "--force"),
}  # fmt: skip


@needs_rtx
@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests_get_one_line_and_code_2(case: str, folder: Path, tmp_path: Path) -> None:
    arguments, word = BAD_REQUESTS[case]
    before = sorted(path.name for path in folder.iterdir())
    filled = [text.format(f=folder, t=tmp_path) for text in arguments]
    result = command(*filled, MAMBA_EXPORT_TRT_PLUGIN="none")
    assert result.returncode == 2, result.stdout + result.stderr
    assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == before, "nothing is written"


@needs_rtx
@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"timing_cache": Path("x")}, "--timing-cache"),
        ({"version_compatible": True}, "--version-compatible"),
        ({"hardware_compatible": True}, "--hardware-compatible"),
    ],
)
def test_options_of_tensorrt_alone(option: dict, name: str, folder: Path) -> None:
    with pytest.raises(MambaExportError, match=name):
        build(folder, BuildOptions(plugin=False, runtime="tensorrt-rtx", **option))


@needs_rtx
@pytest.mark.parametrize("content", [b"no library", None])
def test_a_foreign_plugin_library(
    content: bytes | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libother.so"
    if content is None:  # a real library, of another maker
        shutil.copyfile(next(Path("/lib").glob("**/libm.so.6")), library)
    else:
        library.write_bytes(content)
    monkeypatch.setenv("MAMBA_EXPORT_TRT_PLUGIN", str(library))
    with pytest.raises(MambaExportError, match=r"libother\.so") as caught:
        build(folder, BuildOptions(runtime="tensorrt-rtx"))
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("MAMBA_EXPORT_TRT_PLUGIN", str(tmp_path / "none.so"))
    with pytest.raises(MambaExportError, match="is not a file"):
        build(folder, BuildOptions(runtime="tensorrt-rtx"))


def test_a_file_without_our_nodes(folder: Path) -> None:
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    del model.graph.node[:]
    del model.graph.output[:-1]
    last, result = model.graph.input[-1], model.graph.output[-1]
    model.graph.node.append(onnx.helper.make_node("Identity", [last.name], [result.name]))
    del model.functions[:]
    onnx.save(model, str(folder / "model.onnx"))
    with pytest.raises(MambaExportError, match="none of our operators"):
        prepare(folder / "model.onnx", plugin=True)
    (folder / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(MambaExportError, match="damaged"):
        prepare(folder / "model.onnx", plugin=True)


def test_a_description_survives_json(exported: Path) -> None:
    from mamba_export.backends.tensorrt.description import describe
    from mamba_export.backends.tensorrt.profiles import make_profiles

    description = describe(
        read_metadata(exported),
        runtime="tensorrt",
        profiles=make_profiles((1, 2, 3), (1, 5, 9)),
        plugins={"SelectiveScan": 2},
        plugin_library="x.so",
    )
    content = json.loads(json.dumps(description.to_json()))
    assert content["format"] == 1
    assert content["profiles"][1] == {"name": "decode", "batch": [1, 2, 3], "length": [1, 1, 1]}
    assert content["states"][0] == ["past_key_values.0.conv_state", "present.0.conv_state"]
    assert EngineDescription.from_fields(Fields(content, MambaExportError)) == description


@needs_rtx
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    "operator",
    [
        *("SelectiveScan", "SelectiveScanUngated", "CausalConv1d"),
        *("StateSpaceDualGatedWithDecay", "GatedRmsNorm"),
    ],
)
@pytest.mark.parametrize(
    "plugin", [pytest.param(True, marks=needs_plugin), pytest.param(False, marks=needs_surgeon)]
)
def test_verifys_one_node_graphs_build(operator: str, dtype: str, plugin: bool) -> None:
    """What `verify --backend trt` builds for each point of the parity grid."""
    from mamba_export.backends.tensorrt.one_node_engine import build_graph
    from mamba_export.backends.tensorrt.plugin import load_plugin
    from mamba_export.export.functions import function_protos
    from mamba_export.verify.cases import Case, draw
    from mamba_export.verify.operators import one_node_model

    library = libraries.load(TENSORRT_RTX)
    if plugin:
        load_plugin(library)
    case = Case.of(operator, length=9)
    serialised = one_node_model(case, dtype, function_protos(20), 20)
    inputs = {name: tensor.float().numpy() for name, tensor in draw(case, 0).items()}
    plan = build_graph(library, onnx.ModelProto.FromString(serialised), inputs, plugin=plugin)
    assert memoryview(plan).nbytes > 1000
